"""Markdown on a terminal, without a loss: each character of a text is shown, unless it is one of Markdown's own marks.

Formulas are shown as their source, and the target of a link follows its label. How a text is read, `chat.markdown`
knows; this module knows rich, and is imported when something is drawn with it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from markdown_it.token import Token
from pygments import token as code
from rich import box, markdown
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.markdown import TextElement
from rich.measure import Measurement
from rich.segment import Segment
from rich.style import Style
from rich.syntax import ANSISyntaxTheme, Syntax
from rich.table import Column, Table
from rich.text import Text

from ..chat.markdown import markdown_parser
from .looks import ATTRIBUTES, Palette

TAB = 8  # columns, as terminals have them
MIN_WIDTH = 16  # columns of the text after a bullet, a number or the mark of a quote
MIN_CELL_WIDTH = 8


class Markdown(markdown.Markdown):
    def __init__(self, text: str, palette: Palette = ATTRIBUTES, *, fold_code: bool = False):
        """`fold_code`: break lines of code that are wider than the window, and expand their tabs. Otherwise the
        terminal does that, and what is copied from it is the code as it was written."""
        super().__init__("")
        self.palette, self.fold_code = palette, fold_code
        self.lines = text.split("\n")
        self.parsed = markdown_parser().parse(text)

    def _flatten_tokens(self, tokens: Iterable[Token]) -> Iterable[Token]:
        for token in super()._flatten_tokens(tokens):
            if token.type == "softbreak":  # nobody wraps lines by hand for a terminal: the break was meant
                token.type = "hardbreak"
            elif token.type == "formula" and not token.block:
                token.type = "text"
            elif token.type == "target":
                token.type = "apart"  # what is nested comes here once for each level
                yield Token("text", "", 0, content=" ")
            yield token


class Heading(markdown.Heading):
    @classmethod
    def create(cls, markdown: markdown.Markdown, token: Token) -> Heading:
        return cls(token.tag, token.markup)

    def __init__(self, tag: str, mark: str):
        super().__init__(tag)
        self.mark = mark

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.text:
            yield from super().__rich_console__(console, options)
        else:
            yield Text(self.mark)


class CodeBlock(TextElement):
    """Code in the colors of its language, with nothing around it that would be copied with it; if its fence says more
    than the language, that stands above the code."""

    style_name = "markdown.code_block"

    @classmethod
    def create(cls, markdown: markdown.Markdown, token: Token) -> CodeBlock:
        assert isinstance(markdown, Markdown)
        return cls(token.markup, token.info.strip(), code_theme(markdown.palette), fold=markdown.fold_code)

    def __init__(self, fence: str, info: str, theme: ANSISyntaxTheme, *, fold: bool):
        self.fence, self.info, self.theme, self.fold = fence, info, theme, fold

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        text = self.text.plain.rstrip()
        if not text:
            yield Text(self.fence + self.info)
            return
        syntax = Syntax(text, self.info.partition(" ")[0] or "text", theme=self.theme, tab_size=0)
        if self.info and (" " in self.info or syntax.lexer is None):
            yield Text(self.info, "muted")
        lines = syntax.highlight(text).split("\n")
        while len(lines) > 1 and not lines[-1].plain:  # a lexer ends the last line
            lines.pop()
        for row in [row for line in lines for row in _folded(line, options.max_width)] if self.fold else lines:
            yield from row.render(console)
            yield Segment.line()


def _folded(line: Text, width: int) -> Iterable[Text]:
    """The rows of a line, broken where a terminal would break it."""
    line.expand_tabs(TAB)
    places, used = [], 0
    for index, character in enumerate(line.plain):
        used += cell_len(character)
        if used > width:
            places.append(index)
            used = cell_len(character)
    return line.divide(places)


def code_theme(palette: Palette) -> ANSISyntaxTheme:
    colors = {
        code.Comment: f"italic {palette.muted}",
        code.Keyword: palette.keyword,
        code.Operator.Word: palette.keyword,
        code.Name.Class: palette.name,
        code.Name.Function: palette.name,
        code.Name.Tag: palette.keyword,
        code.Name.Attribute: palette.name,
        code.Name.Decorator: palette.name,
        code.String: palette.string,
        code.Number: palette.number,
        code.Generic.Inserted: palette.string,
        code.Generic.Deleted: palette.number,
        code.Generic.Heading: "bold",
    }
    return ANSISyntaxTheme({token: Style.parse(style) for token, style in colors.items()})


class Formula(TextElement):
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.text


class BlockQuote(markdown.BlockQuote):
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from _after_mark("> ", "> ", self.elements, self.style, console, options)


class ListElement(markdown.ListElement):
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        items = [item for item in self.items if isinstance(item, ListItem)]  # all of them
        width = max(len(item.label) for item in items) + 2
        for item in items:
            first = f"{item.label:>{width - 1}} "
            yield from _after_mark(first, " " * width, item.elements, item.style, console, options)


class ListItem(markdown.ListItem):
    @classmethod
    def create(cls, markdown: markdown.Markdown, token: Token) -> ListItem:
        return cls(token.info, token.markup)

    def __init__(self, number: str, mark: str):
        super().__init__()
        self._number, self._mark = number, mark

    @property
    def label(self) -> str:
        """The number as it is written, or a bullet; a plus, and a mark without a text, may be meant as such."""
        is_empty = not [*self.elements]  # type: ignore[misc]  # rich annotates what it iterates over wrongly
        if self._number or self._mark == "+" or is_empty:
            return self._number + self._mark
        return "•"


def _after_mark(
    first: str, others: str, content: RenderableType, style: Style, console: Console, options: ConsoleOptions
) -> RenderResult:
    """The content after a mark, or below it if there is no room."""
    room = options.max_width - len(first)
    if room < MIN_WIDTH:
        first, others, room = first.rstrip() + "\n", "", options.max_width
    content_segments = Segment.apply_style(console.render(content, options.update(width=room)), style)
    lines = [*Segment.split_lines(content_segments)] or [[]]  # not cropped: the terminal breaks code
    for index, line in enumerate(lines):
        yield Segment(others if index else first, style)
        yield from line
        yield Segment.line()


class TableElement(markdown.TableElement):
    """A table, or its source if the window is too narrow for its columns."""

    @classmethod
    def create(cls, markdown: markdown.Markdown, token: Token) -> TableElement:
        assert isinstance(markdown, Markdown)
        assert token.map is not None
        return cls("\n".join(markdown.lines[slice(*token.map)]))

    def __init__(self, source: str):
        super().__init__()
        self._source = source

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        head = self.header.row.cells if self.header and self.header.row else ()
        table = Table(*map(self._column, head), box=box.SIMPLE, pad_edge=False)
        table.border_style, table.collapse_padding = "markdown.table.border", True
        for row in self.body.rows if self.body else ():
            table.add_row(*(cell.content for cell in row.cells))
        narrowest = Measurement.get(console, options.update(max_width=sys.maxsize), table).minimum
        if min(narrowest, len(table.columns) * (MIN_CELL_WIDTH + 3)) <= options.max_width:
            yield table
        else:
            yield Text(self._source)

    def _column(self, cell: markdown.TableDataElement) -> Column:
        heading = cell.content.copy()
        heading.stylize("markdown.table.header")
        return Column(heading, overflow="fold")


Markdown.elements = markdown.Markdown.elements | {
    "heading_open": Heading,
    "fence": CodeBlock,
    "code_block": CodeBlock,
    "formula": Formula,
    "blockquote_open": BlockQuote,
    "bullet_list_open": ListElement,
    "ordered_list_open": ListElement,
    "list_item_open": ListItem,
    "table_open": TableElement,
}
Markdown.inlines = markdown.Markdown.inlines | {"link", "link_url"}
