"""A TOML file of commands -> functions that a model may call; `example.toml`, beside this, is one.

    [tools.word_count]
    description = "Counts the words of a file."
    command = ["wc", "-w", "--", "{file}"]
    timeout = 30      # seconds
    output = 10000    # characters, of which the model reads both ends

    [tools.word_count.parameters]    # a JSON schema; or parameters_file = "schema.json", beside the TOML file
    type = "object"
    required = ["file"]
    properties.file = { type = "string", description = "Path of the file." }

The command is run without a shell, in the user's folder and environment, with all arguments as JSON on its standard
input. In its words, `{name}` becomes the value of an argument: text as it is, anything else as JSON. A word is left out
if an argument in it was not given, or is null. Braces around anything but a name are left alone. When the program ends
or has to be stopped, the processes that it has left running end too (on macOS, not those that have called `setsid`).

What a model writes is untrusted, and can do no more than the file allows:

- the arguments have to fit the schema, which has no other names unless it has `additionalProperties`;
- the program is the file's choice: its first word has no `{name}`;
- a value cannot become an option: a word that begins with "-" only because of a value is refused, unless "--" stands
  before it. So write `--lines={lines}` for an option's value, and "--" before paths.

What else a program takes for more than text is not known here: give a script for `sh -c` its values as words after it
(`["sh", "-c", 'wc -w < "$1"', "sh", "{file}"]`), never with `{name}` inside.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import GptOssError
from ..harmony.messages import BUILTIN_TOOLS, Tool
from ..process import Output, Stop, collect, end, start
from ..untrusted import MAX_JSON, os_error_text, parse_json, parse_toml, read_json, read_regular
from .toolbox import Function

KEYS = ("description", "command", "parameters", "parameters_file", "timeout", "output")
TIMEOUT = 30.0
OUTPUT = 10_000
MAX_READ = 4 * 2**20  # bytes of output, after which a command is stopped
CHECK_SECONDS = 2.0  # processor time to compare arguments with a schema: a pattern's can double with each character
MAX_COMPLAINT = 1000  # characters of a message about arguments, which may quote them

# A name in TypeScript, in which Harmony describes functions.
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_PLACEHOLDER = re.compile(rf"\{{({_NAME.pattern})\}}")


class ToolsFileError(GptOssError):
    """A file of tools that cannot be read, or says something that cannot be done; the message names the place."""


class ArgumentsError(GptOssError):
    """Arguments with which a command is not run; the message is for the model."""


@dataclass(frozen=True)
class Command:
    """The command line of a function."""

    words: tuple[str, ...]
    parameters: dict[str, Any]
    """The JSON schema of its arguments, an object."""
    timeout: float = TIMEOUT
    """Seconds, after which it is stopped."""
    output: int = OUTPUT
    """Characters that the model reads of each stream."""

    def line(self, /, **arguments: Any) -> str:
        """The command line that `run` would run, with standard input if not all arguments are in its words. Raises
        ArgumentsError."""
        line = shlex.join(self._filled(arguments))
        if all(name in _names(self.words) for name in arguments):
            return line
        return f"{line} <<< {shlex.quote(json.dumps(arguments))}"

    def run(self, /, **arguments: Any) -> str | dict[str, Any]:
        """Standard output, or what went wrong as an object for the model. Raises ArgumentsError; KeyboardInterrupt
        stops the command."""
        words = self._filled(arguments)
        written = [Output(2 * MAX_READ), Output(2 * MAX_READ)]  # which is more than is read of it
        with tempfile.TemporaryFile() as standard_input:
            standard_input.write(json.dumps(arguments).encode())
            standard_input.seek(0)
            try:
                process = start(words, stdin=standard_input, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            except OSError as error:
                return {"error": f"cannot run {words[0]}: {os_error_text(error)}"}
            with process:
                try:
                    stop = collect(process, written, max_bytes=MAX_READ, seconds=self.timeout)
                finally:
                    end(process)
        output, error_output = (_cut(each.text(), self.output) for each in written)
        if stop:
            too_much, too_long = f"wrote more than {MAX_READ:,} bytes", f"took longer than {self.timeout:g} seconds"
            failure = f"stopped, because it {too_much if stop is Stop.TOO_MUCH else too_long}"
            return {"error": failure, "output": output, "error_output": error_output}
        if process.returncode:
            return {"exit_status": process.returncode, "output": output, "error_output": error_output}
        return output

    def _filled(self, arguments: dict[str, Any]) -> list[str]:
        """The words of one call."""
        _check(arguments, self.parameters)
        texts = {
            name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for name, value in arguments.items()
            if value is not None
        }
        filled = []
        for i, word in enumerate(self.words):
            if not texts.keys() >= _names([word]):
                continue
            text = _PLACEHOLDER.sub(lambda match: texts[match[1]], word)
            if text.startswith("-") and not word.startswith("-") and "--" not in self.words[:i]:
                raise ArgumentsError(f"{text!r} begins with '-', and {self.words[0]} could take it for an option")
            try:
                valid = b"\0" not in os.fsencode(text)
            except UnicodeEncodeError:
                valid = False
            if not valid:
                raise ArgumentsError(f"{text!r} is not text that a command can be given")
            filled.append(text)
        return filled


def load_tools(path: Path, *, asks: bool = True) -> list[Function]:
    """The functions of a TOML file, in its order. Raises ToolsFileError."""
    try:
        # Through JSON, so that its limits hold here too: no dates, no infinities, no depth without end.
        table = parse_json(json.dumps(parse_toml(read_regular(path, MAX_JSON))).encode())
    except OSError as error:
        raise ToolsFileError(f"cannot read {path}: {os_error_text(error)}") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise ToolsFileError(f"{path} is not a file of tools in TOML: {error}") from None
    tools = table.get("tools")
    if unknown := [key for key in table if key != "tools"]:
        raise ToolsFileError(f"{path} has {unknown[0]!r}; it may have [tools.NAME] tables only")
    if not isinstance(tools, dict) or not tools:
        raise ToolsFileError(f"{path} has no tools: write a table [tools.NAME] for each")
    return [_function(path, name, entry, asks) for name, entry in tools.items()]


def _function(path: Path, name: str, entry: Any, asks: bool) -> Function:
    where = f"{path}: tools.{name}"
    if not _NAME.fullmatch(name) or name in BUILTIN_TOOLS:
        raise ToolsFileError(
            f"{where}: the name of a tool is a word of letters, digits and _, and not {' or '.join(BUILTIN_TOOLS)}"
        )
    if not isinstance(entry, dict):
        raise ToolsFileError(f"{where} is not a table")
    if unknown := [key for key in entry if key not in KEYS]:
        raise ToolsFileError(f"{where} has {unknown[0]!r}; it may have {', '.join(KEYS)}")
    description = entry.get("description")
    if not isinstance(description, str) or not description:
        raise ToolsFileError(f"{where}.description is not text that tells the model what the tool does")
    timeout, output = entry.get("timeout", TIMEOUT), entry.get("output", OUTPUT)
    if type(timeout) not in (int, float) or timeout <= 0:
        raise ToolsFileError(f"{where}.timeout is {timeout!r}, not a number of seconds")
    if type(output) is not int or output < 1:
        raise ToolsFileError(f"{where}.output is {output!r}, not a number of characters")
    parameters = _parameters(path, where, entry)
    command = Command(_words(where, entry.get("command"), parameters), parameters, timeout, output)
    described = parameters if entry.keys() & {"parameters", "parameters_file"} else None
    return Function(Tool(name, description, described), command.run, asks=asks, preview=command.line)


def _parameters(path: Path, where: str, entry: dict[str, Any]) -> dict[str, Any]:
    """The JSON schema of a tool's arguments, closed unless it says otherwise."""
    if "parameters" in entry and "parameters_file" in entry:
        raise ToolsFileError(f"{where} has both parameters and parameters_file")
    schema = entry.get("parameters", {"type": "object"})
    if "parameters_file" in entry:
        if not isinstance(entry["parameters_file"], str):
            raise ToolsFileError(f"{where}.parameters_file is not the name of a file")
        schema = read_json(path.parent / entry["parameters_file"], ToolsFileError)
    properties = schema.get("properties", {}) if isinstance(schema, dict) else None
    if not isinstance(properties, dict) or schema.get("type") != "object":
        raise ToolsFileError(f'{where}.parameters is not a JSON schema of type "object"')
    if odd := [name for name in properties if not _NAME.fullmatch(name)]:
        raise ToolsFileError(f"{where}.parameters: {odd[0]!r} is not a word of letters, digits and _")

    from jsonschema import Draft202012Validator, SchemaError  # 0.06 s

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise ToolsFileError(f"{where}.parameters is not a JSON schema: {error.json_path}: {error.message}") from None
    return {"additionalProperties": False} | schema


def _words(where: str, command: Any, parameters: dict[str, Any]) -> tuple[str, ...]:
    if not isinstance(command, list) or not command or not all(isinstance(word, str) for word in command):
        raise ToolsFileError(f'{where}.command is not a list of words, as ["wc", "-w", "--", "{{file}}"]')
    if not command[0] or _names(command[:1]):
        raise ToolsFileError(f"{where}.command begins with {command[0]!r}, not with the name of a program")
    if unknown := _names(command) - parameters.get("properties", {}).keys():
        raise ToolsFileError(f"{where}.command has {{{min(unknown)}}}, which is none of its parameters")
    if any("\0" in word for word in command):
        raise ToolsFileError(f"{where}.command has a null character")
    return tuple(command)


def _names(words: list[str] | tuple[str, ...]) -> set[str]:
    """The arguments that words mention."""
    return {name for word in words for name in _PLACEHOLDER.findall(word)}


def _check(arguments: dict[str, Any], parameters: dict[str, Any]) -> None:
    """Raises ArgumentsError where the arguments do not fit the schema, or take too long to compare with it."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    # An empty registry, because the default one opens connections for references to elsewhere.
    validator = Draft202012Validator(parameters, registry=Registry())
    try:
        with _limited(CHECK_SECONDS):
            error = best_match(validator.iter_errors(arguments))
    except (Unresolvable, RecursionError) as broken:
        raise ArgumentsError(f"the tool's schema cannot be followed with these arguments: {broken}") from None
    if error:
        raise ArgumentsError(_cut(f"{error.json_path}: {error.message}", MAX_COMPLAINT))


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Limit the processor time of a block. Signals arrive in the main thread: in others there is no limit."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def break_off(*_: object) -> None:
        raise ArgumentsError(f"the arguments take more than {seconds:g} seconds to compare with the tool's schema")

    before = signal.signal(signal.SIGVTALRM, break_off)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _cut(text: str, limit: int) -> str:
    """The beginning and the end of a text of more than `limit` characters."""
    if len(text) <= limit:
        return text
    head = limit // 2
    tail = len(text) - (limit - head)
    return f"{text[:head]}\n[{tail - head:,} characters left out]\n{text[tail:]}"
