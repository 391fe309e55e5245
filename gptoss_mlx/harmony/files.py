"""Files -> what `gptoss-mlx harmony render` and `gptoss-mlx harmony parse` print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import GptOssError
from ..foreign import read_named, reason
from .messages import Message, conversation_from_json
from .parse import Content, Parser, Preamble, Reasoning, ToolCall, pieces_of
from .render import render_text

MAX_BYTES = 16 * 2**20  # as much as 131,072 tokens can say


def render_file(path: Path) -> str:
    """A JSON conversation -> the exact prompt. Raises GptOssError."""
    text = _read(path)
    try:
        return render_text(conversation_from_json(json.loads(text)))
    except (ValueError, RecursionError) as error:
        raise GptOssError(f"{path} is not JSON: {error}") from None
    except GptOssError as error:
        raise GptOssError(f"{path}: {error}") from None


def parse_file(path: Path) -> dict[str, Any]:
    """Raw model output, as it follows `<|start|>assistant` -> messages and what they mean. Raises GptOssError.

    `content` is all that the user reads: preambles, then the answer.
    """
    parser = Parser()
    events = [event for piece in pieces_of(_read(path)) for event in parser.feed(piece)]
    events += parser.finish()
    calls = [event for event in events if isinstance(event, ToolCall)]
    return {
        "messages": [_as_json(message) for message in parser.messages],
        "reasoning": "".join(event.text for event in events if isinstance(event, Reasoning)),
        "content": "".join(event.text for event in events if isinstance(event, (Preamble, Content))),
        "tool_calls": [{"name": event.name, "arguments": event.arguments} for event in calls],
        "stop": parser.stop,
    }


def _as_json(message: Message) -> dict[str, str | None]:
    return {
        "channel": message.channel,
        "recipient": message.recipient,
        "content_type": message.content_type,
        "content": message.content,
    }


def _read(path: Path) -> str:
    try:
        # Not read_text: its universal newlines would change what the model wrote.
        return read_named(path, MAX_BYTES).decode()
    except UnicodeDecodeError:
        raise GptOssError(f"{path} is not UTF-8 text") from None
    except (OSError, ValueError) as error:
        raise GptOssError(f"cannot read {path}: {reason(error)}") from None
