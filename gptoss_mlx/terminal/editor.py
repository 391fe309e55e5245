"""A text in the editor of a person's choice: VISUAL, EDITOR, or one that is installed.

Knows files and processes; where the text comes from and what becomes of it, others know.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from ..errors import GptOssError
from ..untrusted import os_error_text

USUAL = ("nano", "vi")


def edited(text: str) -> str:
    """The text as the editor leaves it. Raises GptOssError, where there is no editor or it fails: then nothing is."""
    command = _command()
    try:
        with TemporaryDirectory(prefix="gptoss-mlx-") as folder:
            path = Path(folder, "message.md")
            path.write_bytes(text.encode(errors="surrogateescape"))
            if status := _run([*command, str(path)]):
                how = f"ended with exit status {status}" if status > 0 else f"was ended by signal {-status}"
                raise GptOssError(f"{command[0]} {how}: the text is as it was")
            written = path.read_bytes().decode(errors="replace").replace("\r\n", "\n")
    except (OSError, ValueError) as error:  # ValueError: a null character in the command
        raise GptOssError(
            f"cannot edit with {command[0]}: {os_error_text(error)}: VISUAL or EDITOR names the editor to use"
        ) from None
    return written if text.endswith("\n") else written.removesuffix("\n")  # which most editors add


def _command() -> list[str]:
    named = os.environ.get("VISUAL") or os.environ.get("EDITOR") or ""
    try:
        words = shlex.split(named) or [next(program for program in USUAL if shutil.which(program))]
    except ValueError as error:
        raise GptOssError(f"cannot edit with {named}: {error}") from None
    except StopIteration:
        raise GptOssError("no editor is installed: VISUAL or EDITOR names the editor to use") from None
    return [os.path.expanduser(words[0]), *words[1:]]


def _run(command: list[str]) -> int:
    """The exit status. Ctrl-C is the editor's alone; Ctrl-Z stops it together with this program, for one shell."""
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: None),  # ignored, it would be so in the editor too
        signal.SIGTSTP: signal.signal(signal.SIGTSTP, signal.SIG_DFL),
    }
    try:
        return subprocess.call(command)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
