"""Pages of the browser: a file's text in numbered lines, HTML as text with numbered links, and no fakes of either.

The names, titles and texts of files are untrusted: what could look like a link is replaced, and what would drive a
terminal is escaped. Which files there are, `search` and `browser` know.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import unescape
from pathlib import Path
from typing import Any

from ..errors import printable

WIDTH = 80  # columns
MAX_TABS = 2**20  # of a file; of more, each is one space
MAX_LABEL = 200  # characters of a name, title or query

# Brackets that could fake a link become similar ones; invisible characters are removed.
_DEFUSED = str.maketrans({"【": "〖", "】": "〗", "\u200b": None, "\ufeff": None, "\xad": None})
_BREAK = re.compile("\r\n|[\r\v\f\x1c-\x1e\x85\u2028\u2029]")
_SPACE = re.compile(r"[^\S\n ]")
_WRAPPED = re.compile(rf".{{1,{WIDTH}}}(?:(?<= )|(?= )|$)|.{{1,{WIDTH}}}|^$", re.MULTILINE)
_LINK = re.compile(r"【\d+†([^】]*)】")


@dataclass(frozen=True)
class Link:
    """Where `open` goes by an id: a file, and the line of its page with the passage."""

    path: Path
    line: int = 0
    as_source: bool = False


@dataclass(frozen=True)
class Page:
    """What was shown under a cursor."""

    title: str
    source: str
    text: str
    links: tuple[Link, ...] = ()
    path: Path | None = None
    """The file; None for a page of results."""
    as_source: bool = False

    @cached_property
    def lines(self) -> Lines:
        """The text as it is numbered and shown."""
        return Lines(self.text)

    def lines_with(self, text: str) -> Iterator[int]:
        """The lines in which a match begins; a match may go on in the next line, where a long one was wrapped."""
        for match in re.finditer(re.escape(text), self.text, re.IGNORECASE):
            yield self.lines.at(match.start())


class Lines(Sequence[str]):
    """A text in lines of at most WIDTH characters, cut beside a space if there is one. Holds the text and where each
    line begins, and not the lines: a string of one character takes the memory of sixty."""

    def __init__(self, text: str):
        self._text = text
        self._starts = array("I", (piece.start() for piece in _WRAPPED.finditer(text)))

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        end = self._starts[index + 1] if index + 1 < len(self) else None
        return printable(self._text[self._starts[index] : end].removesuffix("\n"))

    def at(self, position: int) -> int:
        """The number of the line with a position of the text."""
        return bisect_right(self._starts, position) - 1


class Html:
    """The text of an HTML page, its links numbered: `targets`. What a browser would not show is left out.

    One regular expression finds the markup, in linear time: on a hostile megabyte, html.parser takes minutes.
    """

    MARKUP = re.compile(
        r"<!--.*?(?:-->|\Z)"
        r"|<title\b[^<>]*>(?P<title>.*?)(?:</title\b[^<>]*>?|\Z)"
        r"|<(?P<silent>script|style|template)\b.*?(?:</(?P=silent)\b[^<>]*>?|\Z)"
        r"|<(?P<end>/?)(?P<tag>[a-z][a-z0-9]*)\b(?P<attributes>[^<>]*)>"
        r"|<[!?/][^<>]*>?",
        re.IGNORECASE | re.DOTALL,
    )
    HREF = re.compile(r"(?<![-\w])href\s*=\s*(\"[^\"]*\"|'[^']*'|[^\s\"']+)", re.IGNORECASE)
    REFERENCE = re.compile(r"&#?\w{1,32};")  # bounded, because unescape raises ValueError for thousands of digits
    BREAKS = dict.fromkeys(("br", "div", "li", "tr", "dt", "dd", "section", "article", "header", "footer", "nav"), 1)
    BREAKS |= dict.fromkeys(
        ("p", "pre", "table", "ul", "ol", "dl", "blockquote", "h1", "h2", "h3", "h4", "h5", "h6"), 2
    )
    PREFIXES = {f"h{level}": "#" * level + " " for level in range(1, 7)} | {"li": "  * ", "td": " ", "th": " "}

    def __init__(self, data: str, linked: Callable[[str], Path | None]):
        """`linked`: the file to which a reference leads, or None."""
        self.title = ""
        self.targets: dict[Path, int] = {}
        self._linked = linked
        self._parts = [""]
        self._preformatted = False
        self._link: tuple[int, Path] | None = None  # the part with which a link's text begins, and where it leads
        end = 0
        for markup in self.MARKUP.finditer(data):
            self._add_text(data[end : markup.start()])
            end = markup.end()
            if markup["title"] and not self.title:
                self.title = " ".join(self._unescaped(markup["title"]).split())
            elif markup["tag"]:
                self._add_tag(markup["tag"].lower(), markup["end"] == "/", markup["attributes"])
        self._add_text(data[end:])

    def text(self) -> str:
        lines = "\n".join(line.rstrip() for line in "".join(self._parts).split("\n"))
        return re.sub(r"\n{3,}", "\n\n", lines).strip("\n")

    def _add_tag(self, tag: str, is_end: bool, attributes: str) -> None:
        if tag == "pre":
            self._preformatted = not is_end
        if tag == "a":
            self._end_link()
            href = None if is_end else self.HREF.search(attributes)
            target = self._linked(self._unescaped(href[1].strip("'\""))) if href else None
            self._link = (len(self._parts), target) if target else None
        ends = "\n" * self.BREAKS.get(tag, 0)
        if ends and self._parts[-1].strip("\n"):
            self._parts.append(ends)
        elif len(ends) > len(self._parts[-1]):
            self._parts[-1] = ends
        if tag in self.PREFIXES and not is_end:
            self._parts.append(self.PREFIXES[tag])

    def _end_link(self) -> None:
        if self._link:
            start, target = self._link
            if text := " ".join("".join(self._parts[start:]).split()):
                self._parts[start:] = [marker(self.targets.setdefault(target, len(self.targets)), text)]

    def _add_text(self, data: str) -> None:
        text = plain(self._unescaped(data))
        if not self._preformatted:
            text = re.sub(r"\s+", " ", text)
            if self._parts[-1].endswith((" ", "\n")):
                text = text.lstrip()
        if text:
            self._parts.append(text)

    def _unescaped(self, text: str) -> str:
        return self.REFERENCE.sub(lambda reference: unescape(reference[0]), text)


def plain(text: str) -> str:
    """Untrusted text with one kind of line break, one kind of space, and nothing that looks like a link."""
    text = _BREAK.sub("\n", text)
    return _SPACE.sub(" ", text.expandtabs(8 if text.count("\t") < MAX_TABS else 1).translate(_DEFUSED))


def label(text: str) -> str:
    """Untrusted text as part of one line."""
    text = printable(text.translate(_DEFUSED))
    return text if len(text) <= MAX_LABEL else f"{text[:MAX_LABEL]}..."


def marker(number: int, text: str) -> str:
    return f"【{number}†{text.replace('†', '‡')}】"


def without_links(lines: list[str]) -> str:
    """Lines of one page to be shown on another, where their link ids mean nothing."""
    return _LINK.sub(r"\1", "\n".join(lines)).translate(_DEFUSED)
