"""The built-in tool `browser` over the files of one folder: no network, nothing outside of the folder, nothing hidden.

The model was trained on OpenAI's own tool, so views look as they do there: `[{cursor}] title (source)`, which lines are
in view, numbered lines of 80 columns, links as `【{id}†text】`. Here a URL is a path relative to the folder. Every page
that was shown keeps its cursor, until the memory for pages is used up; a link always reads its file again.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ..errors import GptOssError
from ..untrusted import descriptor_beneath, os_error_text, parse_json
from .pages import Html, Link, Page, label, marker, plain, without_links
from .search import ranked, read_text, snippet, words_of

VIEW_BYTES = 5000  # of the lines in a view, some 1,250 tokens of English
MAX_KEPT = 64 * 2**20  # bytes of pages
MAX_RESULTS = 20
MAX_MATCHES = 50
MATCH_LINES = 4  # shown of each match
LINES_ABOVE = 4  # that stay in view above the passage to which a link leads
HTML = (".html", ".htm", ".xhtml")


class _Refusal(Exception):
    """Why a call gave nothing, for the model."""


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
            return f"Unknown function: {label(function)}"
        try:
            return functions[function](arguments)
        except _Refusal as refusal:
            return str(refusal)

    def close(self) -> None:
        self._pages.clear()

    def _search(self, arguments: dict[str, Any]) -> str:
        query = _text(arguments, "query")
        count = _integer(arguments, "topn", 10)
        words = words_of(query)
        if not words:
            raise _Refusal("Invalid function arguments: `query` has no words")
        found, rarity = ranked(self._root, words)
        items: list[str] = []
        links: list[Link] = []
        for path in found[: min(max(count, 1), MAX_RESULTS)]:
            try:
                page = self._read(self._inside(path))
            except _Refusal:  # gone since it was found
                continue
            line, passage = snippet(page, rarity)
            items.append(f"  * {marker(len(links), page.source)} {passage}")
            links.append(Link(path, line))
        body = "\n".join(items) or f"No search results for: `{label(query)}`"
        return self._show(Page(label(query), "", f"\nURL: \n# Search Results\n\n{body}", tuple(links)))

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
        items: list[str] = []
        links: list[Link] = []
        after = 0
        for line in page.lines_with(pattern):
            if line < after:
                continue  # the match above shows it
            after = line + MATCH_LINES
            items.append(f"# {marker(len(links), f'match at L{line}')}\n{without_links(page.lines[line:after])}")
            links.append(Link(page.path, line, page.as_source))
            if len(links) == MAX_MATCHES:
                break
        name = label(pattern)
        body = "\n\n".join(items) or f"No `find` results for pattern: `{name}`"
        title = f"Find results for text: `{name}` in `{page.title}`"
        return self._show(Page(title, f"{page.source}/find?pattern={name}", body, tuple(links)))

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
        """The file that a path leads to, symbolic links resolved. One message for all refusals, which does not
        reveal what exists outside."""
        try:
            real = path.resolve(strict=True)
            inside = real.relative_to(self._root)
        except (OSError, RuntimeError, ValueError):
            inside = None
        if inside is None or any(part.startswith(".") for part in inside.parts):
            name = label(str(path).removeprefix(f"{self._root}/"))
            raise _Refusal(f"There is no file `{name}`: open takes a link id, or a path as search shows it.")
        return real

    def _read(self, path: Path, as_source: bool = False) -> Page:
        """The page of a file that is inside the folder."""
        source = label(path.relative_to(self._root).as_posix())
        try:
            data = read_text(self._root, path.relative_to(self._root).parts)
        except OSError as error:
            raise _Refusal(f"Cannot read `{source}`: {os_error_text(error)}.") from None
        title, links = label(path.name), tuple[Link, ...]()
        if path.suffix.lower() in HTML and not as_source:
            html = Html(data, lambda href: self._linked(path.parent, href))
            text, title, links = html.text(), label(html.title) or title, tuple(map(Link, html.targets))
        else:
            text = plain(data).rstrip("\n")
        return Page(title, source, f"\nURL: {source}\n{text}", links, path, as_source)

    def _linked(self, folder: Path, href: str) -> Path | None:
        """The file to which a reference in a file of `folder` leads; None if it is not a file of the root."""
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
