"""What a model may call: functions of the developer's, and the built-in tools that it was trained on.

Finds a tool by the name of a call and runs it; whatever goes wrong becomes a result that the model can act on. Which
calls a person has to agree to is written here; asking is left to others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..errors import GptOssError
from ..harmony.messages import Tool
from ..harmony.parse import ToolCall


@dataclass(frozen=True)
class Function:
    """A tool and the Python callable behind it, which takes the schema's parameters as keyword arguments."""

    tool: Tool
    run: Callable[..., Any]
    asks: bool = False
    """Whether a person has to agree before each call."""
    preview: Callable[..., str] | None = None
    """Keyword arguments -> what would be done, for that person."""


class Builtin(Protocol):
    """A tool that the model was trained on: `python` or `browser`."""

    name: str
    asks: bool

    def run(self, function: str, text: str) -> str:
        """Do what `text` says (code, or the arguments of `function` in JSON) and return what the model reads, errors
        included. KeyboardInterrupt stops it and leaves it usable."""

    def close(self) -> None:
        """Give up what it holds: processes, files."""


class Toolbox:
    """The tools of one conversation."""

    def __init__(self, functions: Sequence[Function] = (), builtins: Sequence[Builtin] = ()):
        self.functions = {function.tool.name: function for function in functions}
        self.builtins = {builtin.name: builtin for builtin in builtins}

    @property
    def tools(self) -> tuple[Tool, ...]:
        return tuple(function.tool for function in self.functions.values())

    def asks(self, call: ToolCall) -> bool:
        """Whether a person has to agree to this call."""
        tool = self.functions.get(call.name) or self._builtin(call.name)
        return tool is not None and tool.asks

    def preview(self, call: ToolCall) -> str:
        """What the call would do, as a person should see it."""
        function = self.functions.get(call.name)
        if function is None or function.preview is None:
            return call.arguments
        try:
            return function.preview(**_keywords(call.arguments))
        except Exception:  # what is wrong with the arguments, `run` tells the model
            return call.arguments

    def run(self, call: ToolCall) -> str:
        """The result of a call as text for the model: JSON unless a function returns a string."""
        if builtin := self._builtin(call.name):
            return builtin.run(call.name.partition(".")[2], call.arguments)
        if call.name not in self.functions:
            return error_result(f"there is no function {call.name}")
        try:
            value = self.functions[call.name].run(**_keywords(call.arguments))
            return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        except (_BadArguments, GptOssError) as error:
            return error_result(str(error))
        except Exception as error:  # whatever a caller's function raises is the model's to know, not a crash
            return error_result(f"{type(error).__name__}: {error}")

    def close(self) -> None:
        for builtin in self.builtins.values():
            builtin.close()

    def _builtin(self, name: str) -> Builtin | None:
        return self.builtins.get(name.partition(".")[0])


class _BadArguments(Exception):
    pass


def _keywords(arguments: str) -> dict[str, Any]:
    try:
        keywords = json.loads(arguments or "{}")
    except ValueError as error:
        raise _BadArguments(f"the arguments are not JSON: {error}") from None
    if not isinstance(keywords, dict):
        raise _BadArguments("the arguments are not a JSON object")
    return keywords


def error_result(text: str) -> str:
    """How the model is told that a call went wrong."""
    return json.dumps({"error": text}, ensure_ascii=False)
