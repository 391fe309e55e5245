"""Files -> the output of `gptoss-mlx harmony render` and `gptoss-mlx harmony parse`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import GptOssError
from ..untrusted import os_error_text, read_named
from .messages import Message, conversation_from_json
from .parse import Content, Parser, Preamble, Reasoning, call_of, kind_of, pieces_of
from .render import render_text

MAX_BYTES = 16 * 2**20  # more than 131,072 tokens can have


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

    `content` is all that the user reads: preambles, then the answer. A text that begins with another's message is the
    log of a whole conversation: all its messages are listed, but only the assistant's have a meaning. An output ends
    where the model begins to answer for a tool.
    """
    parser = Parser()
    for piece in pieces_of(_read(path)):
        list(parser.feed(piece))
        if parser.invented and parser.message is None and not _is_log(parser.messages):
            break
    list(parser.finish())
    said = [message for message in parser.messages if message.role == "assistant"]
    calls = [call for message in said if (call := call_of(message))]
    return {
        "messages": [_as_json(message) for message in parser.messages],
        "reasoning": _joined(said, Reasoning),
        "content": _joined(said, Preamble, Content),
        "tool_calls": [{"name": call.name, "arguments": call.arguments} for call in calls],
        "stop": parser.stop,
    }


def _is_log(messages: list[Message]) -> bool:
    return bool(messages) and messages[0].role in ("system", "developer", "user")


def _joined(messages: list[Message], *kinds: type) -> str:
    return "\n\n".join(message.content for message in messages if message.content and kind_of(message) in kinds)


def _as_json(message: Message) -> dict[str, str | None]:
    return {
        "role": message.role,
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
        raise GptOssError(f"cannot read {path}: {os_error_text(error)}") from None
