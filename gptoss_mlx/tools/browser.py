"""The built-in tool `browser` over the files of one folder: no network, nothing outside of the folder, nothing hidden.

The model was trained on OpenAI's own tool, so pages look as they do there: `[{cursor}] title (source)`, which lines are
in view, numbered lines of 80 columns, links as `【{id}†text】`. Here a URL is a path relative to the folder. Every page
that was shown keeps its cursor; a link always reads its file anew.

A search reads all text files, so that no index can be stale: 40 MB take less than a second. What files and their names
say is foreign: it cannot look like a link, and what would drive a terminal is escaped. Who replaces files meanwhile
leads nowhere outside of the folder, and the oldest pages are given up where many are large.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from html import unescape
from math import log
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ..errors import GptOssError, printable
from ..untrusted import descriptor_beneath, open_beneath, os_error_text, parse_json, read_up_to

WIDTH = 80  # columns
VIEW_BYTES = 5000  # of the lines in a view, some 1,250 tokens of English
MAX_BYTES = 4 * 2**20  # of a file; larger ones are neither found nor opened
MAX_TABS = 2**20  # of a file; of more, each is one space
MAX_KEPT = 64 * 2**20  # bytes of pages
MAX_WORDS = 32  # of a query
MAX_HITS = 10_000  # files of which a search remembers that they have a word
MAX_RESULTS = 20
MAX_MATCHES = 50
MATCH_LINES = 4  # shown of each match
SNIPPET_LINES = 3
LINES_ABOVE = 4  # that stay in view above the passage to which a link leads
MAX_LABEL = 200  # characters of a name, title or query
K1, B = 1.2, 0.75  # of BM25, as usual
NAME_WEIGHT = 4  # a word in the path counts as that many in the text
HTML = (".html", ".htm", ".xhtml")

# What could fake a link becomes what looks like it; what nobody sees goes.
_FOREIGN = str.maketrans({"【": "〖", "】": "〗", "\u200b": None, "\ufeff": None, "\xad": None})
_WORD = re.compile(r"[^\W_]{1,64}")
_BREAK = re.compile("\r\n|[\r\v\f\x1c-\x1e\x85\u2028\u2029]")
_SPACE = re.compile(r"[^\S\n ]")
_WRAPPED = re.compile(rf".{{1,{WIDTH}}}(?:(?<= )|(?= )|$)|.{{1,{WIDTH}}}|^$", re.MULTILINE)
_LINK = re.compile(r"【\d+†([^】]*)】")


class _Refusal(Exception):
    """Why a call gave nothing, for the model."""


@dataclass(frozen=True)
class Link:
    """Where `open` goes by an id: a file, and the line of its page with the passage that was meant."""

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
    def lines(self) -> _Lines:
        """The text as it is numbered and shown."""
        return _Lines(self.text)


class _Lines(Sequence[str]):
    """A text in lines of at most WIDTH characters, cut beside a space if there is one. Holds no line but the text and
    where each begins, because a line of one character takes the memory of sixty."""

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
        """The line with a position of the text."""
        return bisect_right(self._starts, position) - 1


class Browser:
    """`Browser(root).run("search", '{"query": "timeout"}')` is what the model reads, a page or why there is none."""

    name = "browser"
    asks = False

    def __init__(self, root: Path):
        """Raises GptOssError where `root` is not a folder that can be listed."""
        try:
            self._root = root.resolve(strict=True)
            os.scandir(self._root).close()
        except (OSError, RuntimeError) as error:
            raise GptOssError(f"cannot browse {root}: {os_error_text(error)}") from None
        self._pages: list[Page | None] = []

    def preview(self, function: str, text: str) -> str:
        return text

    def run(self, function: str, text: str) -> str:
        functions: dict[str, Callable[[dict[str, Any]], str]] = {
            "search": self._search,
            "open": self._open,
            "find": self._find,
        }
        try:
            arguments = parse_json(text.encode() or b"{}")
        except ValueError as error:
            return f"Invalid function arguments: {error}"
        if not isinstance(arguments, dict):
            return "Invalid function arguments: not a JSON object"
        if function not in functions:
            return f"Unknown function: {_label(function)}"
        try:
            return functions[function](arguments)
        except _Refusal as refusal:
            return str(refusal)

    def close(self) -> None:
        self._pages.clear()

    def _search(self, arguments: dict[str, Any]) -> str:
        query = _text(arguments, "query")
        count = _integer(arguments, "topn", 10)
        words = list(dict.fromkeys(_WORD.findall(query.lower())))[:MAX_WORDS]
        if not words:
            raise _Refusal("Invalid function arguments: `query` has no words")
        found, rarity = _ranked(self._root, words)
        items, links = [], []
        for path in found[: min(max(count, 1), MAX_RESULTS)]:
            try:
                page = self._read(self._inside(path))
            except _Refusal:  # gone since it was found
                continue
            line, snippet = _snippet(page, rarity)
            items.append(f"  * {_marker(len(links), page.source)} {snippet}")
            links.append(Link(path, line))
        body = "\n".join(items) or f"No search results for: `{_label(query)}`"
        return self._show(Page(_label(query), "", f"\nURL: \n# Search Results\n\n{body}", tuple(links)))

    def _open(self, arguments: dict[str, Any]) -> str:
        as_source = arguments.get("view_source") is True
        loc, count = _integer(arguments, "loc"), _integer(arguments, "num_lines")
        line = 0
        if isinstance(arguments.get("id"), str):
            page = self._read(self._inside(self._root / arguments["id"]), as_source)
        else:
            page, number = self._page(arguments), _integer(arguments, "id")
            if number >= len(page.links):
                raise _Refusal(f"Invalid link id `{number}`.")
            if number >= 0:
                link = page.links[number]
                page = self._read(self._inside(link.path), as_source or link.as_source)
                line = min(max(link.line - LINES_ABOVE, 0), len(page.lines) - 1)
            elif as_source and page.path:
                page = self._read(self._inside(page.path), as_source)
        return self._show(page, line if loc < 0 else loc, count)

    def _find(self, arguments: dict[str, Any]) -> str:
        pattern, page = _text(arguments, "pattern"), self._page(arguments)
        if page.path is None:
            raise _Refusal("Cannot run `find` on search results page or find results page")
        items, links, after = [], [], 0
        for line in _matches(page, pattern):
            if line < after:
                continue  # the match above shows it
            after = line + MATCH_LINES
            items.append(f"# {_marker(len(links), f'match at L{line}')}\n{_without_links(page.lines[line:after])}")
            links.append(Link(page.path, line, page.as_source))
            if len(links) == MAX_MATCHES:
                break
        label = _label(pattern)
        body = "\n\n".join(items) or f"No `find` results for pattern: `{label}`"
        title = f"Find results for text: `{label}` in `{page.title}`"
        return self._show(Page(title, f"{page.source}/find?pattern={label}", body, tuple(links)))

    def _page(self, arguments: dict[str, Any]) -> Page:
        """The page at `cursor`, or the last one."""
        cursor, last = _integer(arguments, "cursor"), len(self._pages) - 1
        if last < 0:
            raise _Refusal("No pages to access!")
        if not -1 <= cursor <= last:
            raise _Refusal(f"Cursor `{cursor}` is out of range. Available cursor indices: [0 - {last}].")
        page = self._pages[cursor]
        if page is None:
            raise _Refusal(f"The page at cursor `{cursor}` is not kept any more: open it again.")
        return page

    def _show(self, page: Page, loc: int = 0, count: int = -1) -> str:
        """Put a page on the stack, and what it looks like from line `loc` on: `count` lines, or as many as fit."""
        last = len(page.lines) - 1
        if loc > last:
            raise _Refusal(f"Invalid location parameter: `{loc}`. Cannot exceed page maximum of {last}.")
        shown, room = [], VIEW_BYTES
        for number, line in enumerate(page.lines[loc : loc + count if count > 0 else None], loc):
            shown.append(f"L{number}: {line}")
            room -= len(shown[-1].encode()) + 1
            if room < 0 and len(shown) > 1:
                shown.pop()
                break
        self._keep(page)
        source = f" ({page.source})" if page.source else ""
        return (
            f"[{len(self._pages) - 1}] {page.title}{source}\n"
            f"**viewing lines [{loc} - {loc + len(shown) - 1}] of {last}**\n\n" + "\n".join(shown)
        )

    def _keep(self, page: Page) -> None:
        """Put a page on the stack, and give up the oldest ones where that gets too large."""
        self._pages.append(page)
        kept = {id(each): sys.getsizeof(each.text) for each in self._pages if each}
        for i, each in enumerate(self._pages[:-1]):
            if sum(kept.values()) <= MAX_KEPT:
                break
            if each and each is not page:
                self._pages[i] = None
                kept.pop(id(each), None)

    def _inside(self, path: Path) -> Path:
        """The file behind a path, links resolved. One message for all refusals: what is outside stays unknown."""
        try:
            real = path.resolve(strict=True)
            inside = real.relative_to(self._root)
        except (OSError, RuntimeError, ValueError):
            inside = None
        if inside is None or any(part.startswith(".") for part in inside.parts):
            name = _label(str(path).removeprefix(f"{self._root}/"))
            raise _Refusal(f"There is no file `{name}`: open takes a link id, or a path as search shows it.")
        return real

    def _read(self, path: Path, as_source: bool = False) -> Page:
        """The page of a file that is inside the folder."""
        source = _label(path.relative_to(self._root).as_posix())
        try:
            data = _read_text(self._root, path.relative_to(self._root).parts)
        except OSError as error:
            raise _Refusal(f"Cannot read `{source}`: {os_error_text(error)}.") from None
        title, links = _label(path.name), ()
        if path.suffix.lower() in HTML and not as_source:
            html = _Html(data, lambda href: self._linked(path.parent, href))
            text, title, links = html.text(), _label(html.title) or title, tuple(map(Link, html.targets))
        else:
            text = _plain(data).rstrip("\n")
        return Page(title, source, f"\nURL: {source}\n{text}", links, path, as_source)

    def _linked(self, folder: Path, href: str) -> Path | None:
        """The file that a reference in a file of `folder` names; None if it is none of ours."""
        try:
            parts = urlsplit(href)
            if parts.scheme or parts.netloc or not parts.path:
                return None
            path = self._inside(
                (self._root if parts.path.startswith("/") else folder) / unquote(parts.path).lstrip("/")
            )
            descriptor = descriptor_beneath(self._root, path.relative_to(self._root).parts)
        except (_Refusal, ValueError, OSError):
            return None
        try:
            return path if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
        finally:
            os.close(descriptor)


class _Html:
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
        self._as_is = False
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
            self._as_is = not is_end
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
                self._parts[start:] = [_marker(self.targets.setdefault(target, len(self.targets)), text)]

    def _add_text(self, data: str) -> None:
        text = _plain(self._unescaped(data))
        if not self._as_is:
            text = re.sub(r"\s+", " ", text)
            if self._parts[-1].endswith((" ", "\n")):
                text = text.lstrip()
        if text:
            self._parts.append(text)

    def _unescaped(self, text: str) -> str:
        return self.REFERENCE.sub(lambda reference: unescape(reference[0]), text)


def _ranked(root: Path, words: list[str]) -> tuple[list[Path], dict[re.Pattern[str], float]]:
    """The files with any of the words, best first, and how much each word's pattern tells.

    BM25 with lengths in characters. A word is found where a word begins with it: "file" also in "files".
    """
    # The word comes first in its pattern because the search for a literal is fast.
    patterns = [re.compile(rf"{word}(?<![^\W_]{word})") for word in words]
    hits: list[tuple[str, int, list[int]]] = []
    files = characters = 0
    holders = [0] * len(words)

    def best() -> list[tuple[str, int, list[int]]]:
        return sorted(hits, key=lambda hit: (-score(hit), hit[0].split("/")))

    def score(hit: tuple[str, int, list[int]]) -> float:
        _, length, counts = hit
        half = K1 * (1 - B + B * length * files / characters)
        return sum(weight * n * (K1 + 1) / (n + half) for weight, n in zip(rarity(), counts, strict=True))

    def rarity() -> list[float]:
        return [log(1 + (files - n + 0.5) / (n + 0.5)) for n in holders]

    for path in _files(root):
        try:
            text = _read_text(root, path.split("/")).lower()
        except OSError:
            continue
        files, characters = files + 1, characters + len(text)
        name = path.lower()
        counts = [
            len(pattern.findall(text)) + NAME_WEIGHT * len(pattern.findall(name)) if word in text or word in name else 0
            for word, pattern in zip(words, patterns, strict=True)
        ]
        if any(counts):
            hits.append((path, len(text), counts))
            holders = [holder + (count > 0) for holder, count in zip(holders, counts, strict=True)]
        if len(hits) > MAX_HITS:  # what is not among the better half by now will hardly be among the first few
            del (hits := best())[MAX_HITS // 2 :]
    return [root / path for path, _, _ in best()], dict(zip(patterns, rarity(), strict=True))


def _files(root: Path) -> Iterator[str]:
    """All regular files that are not hidden, by their paths below the root; symbolic links are not followed, and what
    cannot be listed is left out."""
    folders: list[tuple[str, ...]] = [()]
    while folders:
        above = folders.pop()
        try:
            with _opened(root, above) as folder, os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        folders.append((*above, entry.name))
                    elif entry.is_file(follow_symlinks=False):
                        yield "/".join((*above, entry.name))
        except OSError:
            continue


@contextmanager
def _opened(root: Path, names: Sequence[str]) -> Iterator[int]:
    descriptor = descriptor_beneath(root, names)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _read_text(root: Path, names: Sequence[str]) -> str:
    """Raises OSError also for what is too large, or not text."""
    with open_beneath(root, names) as file:
        begun = file.read(8192)
        if b"\0" in begun:
            raise OSError(0, "it is not text")
        return read_up_to(file, MAX_BYTES, begun).decode(errors="replace")


def _snippet(page: Page, rarity: dict[re.Pattern[str], float]) -> tuple[int, str]:
    """The line that tells most about the words, and it with those below it."""

    def told(number: int) -> float:
        line = page.lines[number].lower()
        return sum(weight for pattern, weight in rarity.items() if pattern.search(line))

    first = 2  # behind the URL
    line = max(range(first, len(page.lines)), key=told, default=first)
    return line, " ".join(_without_links(page.lines[line : line + SNIPPET_LINES]).split())


def _matches(page: Page, pattern: str) -> Iterator[int]:
    """The lines in which a match begins; a match may go on in the next line, where a long one was wrapped."""
    for match in re.finditer(re.escape(pattern), page.text, re.IGNORECASE):
        yield page.lines.at(match.start())


def _plain(text: str) -> str:
    """Foreign text with one kind of line break, one kind of space, and nothing that looks like a link."""
    text = _BREAK.sub("\n", text)
    return _SPACE.sub(" ", text.expandtabs(8 if text.count("\t") < MAX_TABS else 1).translate(_FOREIGN))


def _label(text: str) -> str:
    """Foreign text as part of one line."""
    text = printable(text.translate(_FOREIGN))
    return text if len(text) <= MAX_LABEL else f"{text[:MAX_LABEL]}..."


def _marker(number: int, text: str) -> str:
    return f"【{number}†{text.replace('†', '‡')}】"


def _without_links(lines: list[str]) -> str:
    """Lines of one page to be shown on another, where their link ids mean nothing."""
    return _LINK.sub(r"\1", "\n".join(lines)).translate(_FOREIGN)


def _text(arguments: dict[str, Any], name: str) -> str:
    value = arguments.get(name)
    if not isinstance(value, str) or not value:
        raise _Refusal(f"Invalid function arguments: `{name}` should be a string")
    return value


def _integer(arguments: dict[str, Any], name: str, default: int = -1) -> int:
    value = arguments.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value):
        raise _Refusal(f"Invalid function arguments: `{name}` should be an integer")
    return int(value)
