"""What a message brings with it: files named @file, and the output of a !command."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Expanded:
    text: str
    notes: list[str] = field(default_factory=list)


def expand(text: str, allow: Callable[[str], bool]) -> Expanded:
    return Expanded(text)


def run_command(command: str) -> str:
    return subprocess.run(command, shell=True, capture_output=True, text=True, errors="replace").stdout
