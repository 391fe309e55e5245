"""What is attached to a message: the text of files that it names as @file or @*.py, and the output of a command.

Knows files, processes, and how they are written down for a model; whether a command may run, its callers decide.
"""

from __future__ import annotations

import glob
import math
import os
import re
import signal
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from ..chat.attached import MAX_FILE, RAN, fenced, file_text, with_files
from ..engine.interrupts import Interrupts
from ..errors import GptOssError, printable
from ..process import Output, collect, end, start
from ..untrusted import os_error_text, read_regular

MENTION = re.compile(r'(?<!\S)@(?:"(?P<quoted>[^"\n]+)"|(?P<word>[^\s"]\S*))')
LIKE_A_PATH = re.compile(r"[\w~./+-]*[./][\w~./+-]+")
LIKE_A_PATTERN = re.compile(r"[\w~./+?\[\]!-]*\*[\w~./+*?\[\]!-]*")
MAX_MATCHES = 100  # files of a pattern
PUNCTUATION = ".,;:!?)]}'\""  # may follow a name without being part of it

KEPT_OUTPUT = 64_000  # bytes that the model reads: the first half of them, and the last
MAX_OUTPUT = 1000 * KEPT_OUTPUT  # a command that writes more is taken to be endless
TO_CLEAN_UP = 1  # second that Ctrl-C leaves to a command


@dataclass(frozen=True)
class Expanded:
    """A message with the files that it names."""

    text: str
    """The message as the model reads it."""
    notes: list[str]
    """Lines for the person, about what was attached."""


def mention(path: str, quoted: bool = False) -> str:
    """How a message names a file; the quotes around a folder's name stay open, so that more can be typed."""
    if not quoted and " " not in path:
        return f"@{path}"
    return f'@"{path}' if path.endswith("/") else f'@"{path}"'


def expand(text: str) -> Expanded:
    """Append the files that a message names as @path, @"path with spaces" or @*.py, each once, those of a pattern in
    the order of their names.

    A name of no file stays text, with a note if it is a folder or looks like a path: a message may mention people, or
    hold code. Raises GptOssError for devices, binary, large and unreadable files, and for patterns of too many.
    """
    files: dict[str, str] = {}
    notes: list[str] = []
    folders: dict[str, None] = {}
    missing: dict[str, None] = {}
    for match in MENTION.finditer(text):
        written = match["quoted"] or match["word"].rstrip(PUNCTUATION)
        name = _existing(match)
        if name is None:
            if matched := _matched(match):
                notes.append(_attach_all(*matched, files))
            elif match["quoted"] or LIKE_A_PATH.fullmatch(written) or LIKE_A_PATTERN.fullmatch(written):
                missing[written] = None
        elif os.path.isdir(os.path.expanduser(name)):
            folders[name] = None
        elif name not in files:
            files[name] = _read(name)
            notes.append(f"{printable(name)}: {_size(files[name])}")
    if folders:
        notes.append(printable(f"sent as text, because only files can be attached: {', '.join(folders)}"))
    if missing:
        notes.append(printable(f"sent as text, because there is no such file: {', '.join(missing)}"))
    return Expanded(with_files(text, files), notes)


def _matched(match: re.Match[str]) -> tuple[str, list[str]] | None:
    """A pattern that some files match, and their names, one more than may be; hidden ones only where it says so."""
    for pattern in _names(match):
        if glob.has_magic(pattern) and "\0" not in pattern:
            found = glob.iglob(os.path.expanduser(pattern), recursive=True)
            if names := list(islice(filter(os.path.isfile, found), MAX_MATCHES + 1)):
                return pattern, sorted(names)
    return None


def _attach_all(pattern: str, names: list[str], files: dict[str, str]) -> str:
    """Read the files of a pattern, as many bytes as one may have. Returns a note about them."""
    if len(names) > MAX_MATCHES:
        raise GptOssError(f"cannot attach {pattern}: more than {MAX_MATCHES} files")
    contents: dict[str, str] = {}
    size = 0
    for name in names:
        contents[name] = files.get(name) or _read(name)
        size += len(contents[name].encode())
        if size > MAX_FILE:
            raise GptOssError(f"cannot attach {pattern}: its {len(names)} files have more than {MAX_FILE:,} bytes")
    files |= contents
    return f"{printable(pattern)}: {len(names)} file{'s' * (len(names) != 1)}, {_size(''.join(contents.values()))}"


def _size(content: str) -> str:
    lines = content.count("\n") + (content[-1:] not in ("", "\n"))
    return f"{lines:,} line{'s' * (lines != 1)}, {math.ceil(len(content.encode()) / 1000):,} kB"


def _existing(match: re.Match[str]) -> str | None:
    """The name, if something of that name exists; punctuation after a bare word may belong to the sentence."""
    return next((name for name in _names(match) if os.path.lexists(os.path.expanduser(name))), None)


def _names(match: re.Match[str]) -> Iterable[str]:
    names = [match["quoted"]] if match["quoted"] else [match["word"], match["word"].rstrip(PUNCTUATION)]
    return filter(None, dict.fromkeys(names))


def _read(name: str) -> str:
    try:
        if _is_empty(os.path.expanduser(name)):
            return ""
        data = read_regular(Path(os.path.expanduser(name)), MAX_FILE)
    except OSError as error:
        raise GptOssError(f"cannot attach {name}: {os_error_text(error)}") from None
    return file_text(name, data)


def _is_empty(path: str) -> bool:
    """Whether it is a file without any bytes; the system's own files claim to be, and one of them never ends."""
    if not os.path.isfile(path) or os.path.getsize(path):
        return False
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return not os.read(descriptor, 1)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)


def run_command(command: str) -> str:
    """Run a command in the user's shell; a text for the model with the command, what it wrote, and how it ended.

    It has no terminal and nothing to read, and what it leaves in the background ends with it. Of what it writes beyond
    KEPT_OUTPUT, the middle is left out. Raises KeyboardInterrupt for Ctrl-C, when all that it started has ended, and
    GptOssError where there is no shell.
    """
    shell = os.environ.get("SHELL") or "/bin/sh"
    output = Output(KEPT_OUTPUT)
    with Interrupts() as interrupts:
        try:
            streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
            process = start([shell, "-c", command], **streams)
        except (OSError, ValueError) as error:
            raise GptOssError(f"cannot run {shell} -c: {os_error_text(error)}: SHELL names the shell to use") from None
        with process:
            try:
                stop = collect(process, [output], max_bytes=MAX_OUTPUT, check=interrupts.check)
            except KeyboardInterrupt:
                process.send_signal(signal.SIGINT)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(TO_CLEAN_UP)
                raise
            finally:
                end(process)
    written = output.text("\n[{:,} bytes left out]\n")
    ending = f"It was ended: it had written more than {MAX_OUTPUT / 1e6:.0f} MB." if stop else _ending(process)
    screen = f"$ {command}\n{written}".rstrip("\n")
    return f"{RAN}{fenced(screen)}\n{'' if output.size else 'It wrote nothing. '}{ending}"


def _ending(process: subprocess.Popen[bytes]) -> str:
    if process.returncode < 0:
        return f"It was ended by signal {-process.returncode}."
    return f"It ended with exit status {process.returncode}."
