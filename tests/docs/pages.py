"""The documents, and what tests look for in Markdown: fenced blocks, code within a line, headings, links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
GENERATED = ROOT / "docs" / "commands.md"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`([^`\n]+(?:\n[^`\n]+)?)`")
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def fenced(path: Path, *languages: str) -> Iterator[str]:
    """The blocks in these languages; "" is none."""
    for language, block in _FENCE.findall(path.read_text(encoding="utf-8")):
        if language in languages:
            yield block


def code(path: Path) -> Iterator[str]:
    """What stands between backticks within a paragraph or a table."""
    for found in _CODE.findall(prose(path)):
        yield " ".join(found.replace("\\|", "|").split())


def prose(path: Path) -> str:
    """The page without its fenced blocks."""
    return _FENCE.sub("", path.read_text(encoding="utf-8"))


def anchors(path: Path) -> set[str]:
    """The fragments that its headings have, as GitHub makes them."""
    words = (re.sub(r"[^\w\- ]", "", title.lower()) for title in _HEADING.findall(prose(path)))
    return {title.replace(" ", "-") for title in words}


def links(path: Path) -> Iterator[str]:
    """Where its links and pictures lead."""
    yield from _LINK.findall(re.sub(_CODE, "code", prose(path)))
