"""One question, one answer, as text: what a script wants that has no conversation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

from ..engine.generate import Model
from ..harmony.parse import Content
from .session import Session


def generate(model: Model, prompt: str, **options: Any) -> str:
    """The answer to `prompt`, without the reasoning before it; as far as it came, where it reached `max_tokens`.

    `options` are those of `Session`: sampling, instructions, reasoning_effort, max_tokens, functions, ...
    Raises ContextFull for a prompt that does not fit, and GptOssError.
    """
    return "".join(stream_generate(model, prompt, **options))


def stream_generate(model: Model, prompt: str, **options: Any) -> Iterator[str]:
    """The same, piece by piece as it is written."""
    session = Session(model, **options)
    try:
        with closing(session.send(prompt)) as events:
            yield from (event.text for event in events if isinstance(event, Content))
    finally:
        session.close()
