"""The tools that a model may call: functions of the developer's, and the built-in tools that it was trained on.

Finds a tool by the name of a call and runs it; every error becomes a result that the model can act on. A tool says
whether a person has to agree to its calls; asking is left to others.
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
    """A tool, and the Python callable that takes the schema's parameters as keyword arguments."""

    tool: Tool
    run: Callable[..., Any]
    asks: bool = False
    """Whether a person has to agree before each call."""
    preview: Callable[..., str] | None = None
    """Keyword arguments -> a text for that person about what would be done."""


class Builtin(Protocol):
    """A tool that the model was trained on: `python` or `browser`."""

    name: str
    asks: bool

    def preview(self, function: str, text: str) -> str:
        """What `run` would do with the same arguments, for a person to agree to."""

    def run(self, function: str, text: str) -> str:
        """Do what `text` says (code, or the arguments of `function` in JSON) and return what the model reads, errors
        included. KeyboardInterrupt stops it and leaves it usable."""

    def close(self) -> None:
        """End its processes and release its files; `run` starts again."""


class Toolbox:
    """The tools of a conversation, found by name."""

    def __init__(self, functions: Sequence[Function] = (), builtins: Sequence[Builtin] = ()):
        """Raises GptOssError where a call could mean two of them."""
        self.functions = {function.tool.name: function for function in functions}
        self.builtins = {builtin.name: builtin for builtin in builtins}
        names = [builtin.name for builtin in builtins]
        for function in functions:
            if function.tool.name in names or function.tool.name.partition(".")[0] in self.builtins:
                raise GptOssError(f"there are two tools named {function.tool.name}: rename the function")
            names.append(function.tool.name)

    @property
    def tools(self) -> tuple[Tool, ...]:
        return tuple(function.tool for function in self.functions.values())

    def asks(self, call: ToolCall) -> bool:
        """Whether a person has to agree to this call."""
        tool = self._find(call)
        return tool is not None and tool.asks

    def preview(self, call: ToolCall) -> str:
        """What the call would do, as a person should see it."""
        tool = self._find(call)
        if tool is None or tool.preview is None:
            return call.arguments
        if not isinstance(tool, Function):
            return tool.preview(_function_of(call), call.arguments)
        try:
            return tool.preview(**_keywords(call.arguments))
        except Exception:  # `run` reports to the model what is wrong with the arguments
            return call.arguments

    def run(self, call: ToolCall) -> str:
        """The result of a call as text for the model: JSON unless a function returns a string."""
        tool = self._find(call)
        if tool is None:
            return error_result(f"there is no function {call.name}")
        if not isinstance(tool, Function):
            return tool.run(_function_of(call), call.arguments)
        try:
            value = tool.run(**_keywords(call.arguments))
            return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        except (_BadArguments, GptOssError) as error:
            return error_result(str(error))
        except Exception as error:  # whatever a caller's function raises is the model's to know, not a crash
            return error_result(f"{type(error).__name__}: {error}")

    def close(self) -> None:
        """End what the tools hold; they can be called again."""
        for builtin in self.builtins.values():
            builtin.close()

    def _find(self, call: ToolCall) -> Function | Builtin | None:
        return self.functions.get(call.name) or self.builtins.get(call.name.partition(".")[0])


def _function_of(call: ToolCall) -> str:
    """The function of a built-in tool that is called, such as `search` in `browser.search`."""
    return call.name.partition(".")[2]


class _BadArguments(Exception):
    pass


def _keywords(arguments: str) -> dict[str, Any]:
    try:
        keywords = json.loads(arguments or "{}")
    except ValueError as error:
        raise _BadArguments(f"the arguments are not JSON: {error}") from None
    except RecursionError:
        raise _BadArguments("the arguments are nested too deeply") from None
    if not isinstance(keywords, dict):
        raise _BadArguments("the arguments are not a JSON object")
    return keywords


def error_result(text: str) -> str:
    """The result of a call that failed, for the model."""
    return json.dumps({"error": text}, ensure_ascii=False)
