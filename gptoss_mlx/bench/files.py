"""The small files in which Linux tells of a machine: a line of text or a number each, if they can be read at all."""

from __future__ import annotations

from pathlib import Path


def text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip(" \n\0")
    except OSError:
        return None


def number(path: Path) -> int | None:
    try:
        return int(text(path) or "")
    except ValueError:
        return None
