"""Functions that a model may call: found by name, run on JSON arguments, their failures reported to the model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..harmony.messages import Tool


@dataclass(frozen=True)
class Function:
    """A tool and the Python callable behind it, which takes the schema's parameters as keyword arguments."""

    tool: Tool
    run: Callable[..., Any]
    asks: bool = False
    """Whether a person has to agree before each call."""
    preview: Callable[..., str] | None = None
    """What a call would run, as one line for that person; takes what `run` takes."""


def run_call(functions: Mapping[str, Function], name: str, arguments: str) -> str:
    """The result of a call as text for the model: JSON unless the function returns a string.

    Whatever goes wrong becomes an `{"error": ...}` that the model can act on.
    """
    if name not in functions:
        return _error(f"there is no function {name}")
    try:
        keywords = json.loads(arguments or "{}")
    except ValueError as error:
        return _error(f"the arguments are not JSON: {error}")
    if not isinstance(keywords, dict):
        return _error("the arguments are not a JSON object")
    try:
        value = functions[name].run(**keywords)
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    except Exception as error:  # whatever a caller's function raises is the model's to know, not a crash
        return _error(f"{type(error).__name__}: {error}")


def _error(text: str) -> str:
    return json.dumps({"error": text}, ensure_ascii=False)
