"""Markdown on a terminal, without a loss: each character of a text is shown, unless it is one of Markdown's own marks.

Markdown was made for people who see what becomes of their text. A model does not, and writes `Vec<T>`, `\\(E=mc^2\\)`,
`2*3*4` and `__init__` outside of code. So HTML and entities are text here, a backslash stays where it is written,
formulas are shown as their source, and asterisks and underscores are marks only where they can be no operators.

Knows Markdown and rich; imported when something is drawn with them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from functools import cache
from typing import TYPE_CHECKING
from unicodedata import category

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock, blockquote, lheading, list_block, table
from markdown_it.rules_inline import StateInline, emphasis, link, strikethrough
from markdown_it.token import Token
from rich import box, markdown
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.markdown import TextElement
from rich.measure import Measurement
from rich.segment import Segment
from rich.style import Style
from rich.syntax import Syntax
from rich.table import Column, Table
from rich.text import Text

if TYPE_CHECKING:
    from markdown_it.ruler import RuleOptionsType

MAX_DEPTH = 20  # levels of quotes and lists; what is nested deeper is text
MIN_WIDTH = 16  # columns of the text after a bullet, a number or the mark of a quote
MIN_CELL_WIDTH = 8
MIN_UNDERLINE = 3  # characters below a heading: fewer are an operator, or a line of a formula
MAX_FORMULA = 2000  # characters
MAX_LINES = 50  # of a formula

# Where formulas begin and end; a dollar that is followed by a blank, or closes before a word, is money.
_FORMULA = re.compile(
    rf"\\\(.{{0,{MAX_FORMULA}}}?\\\)"
    rf"|\\\[.{{0,{MAX_FORMULA}}}?\\\]"
    rf"|\\begin\{{(\w+\*?)\}}.{{0,{MAX_FORMULA}}}?\\end\{{\1\}}"
    rf"|\$\$.{{1,{MAX_FORMULA}}}?\$\$"
    rf"|\$(?![\s$])[^$]{{0,{MAX_FORMULA}}}?(?<![\s\\])\$(?!\w)",
    re.DOTALL,
)
_FORMULA_BEGINS = re.compile(r"\\\[|\$\$|\\begin\{")
_DUNDER = re.compile(r"__\w{1,80}?__(?!\w)")
_NO_OPENING = "./,;:)]}>=?!^"  # what follows an asterisk that is an operator, or part of a pattern of file names
_OPENS_AFTER = "([{<\"'*_~-|"  # the ASCII marks after which something may be emphasized
_IN_CELLS = str.maketrans("", "", "|\\ \t")


class Markdown(markdown.Markdown):
    def __init__(self, text: str):
        super().__init__("")
        self.lines = text.split("\n")
        self.parsed = _parser().parse(text)

    def _flatten_tokens(self, tokens: Iterable[Token]) -> Iterable[Token]:
        for token in super()._flatten_tokens(tokens):
            if token.type == "softbreak":  # nobody wraps lines by hand for a terminal: the break was meant
                token.type = "hardbreak"
            yield token


class _Parser(MarkdownIt):
    """Takes any text as the target of a link, and leaves it as it is written."""

    def validateLink(self, url: str) -> bool:
        return True

    def normalizeLink(self, url: str) -> str:
        return url


@cache
def _parser() -> MarkdownIt:
    parser = _Parser("commonmark", {"html": False, "maxNesting": 3 * MAX_DEPTH})
    parser.enable(["strikethrough", "table"])
    parser.disable(["reference", "autolink", "image", "entity"])
    inline, block = parser.inline.ruler, parser.block.ruler
    inline.at("escape", _escape)
    inline.at("link", _link)
    inline.at("emphasis", _delimiters(emphasis.tokenize))
    inline.at("strikethrough", _delimiters(strikethrough.tokenize))
    inline.before("escape", "formula", _formula)
    ends: RuleOptionsType = {"alt": ["paragraph", "blockquote", "list"]}
    block.before("blockquote", "formula", _formula_block, ends)
    block.at("blockquote", _bounded(blockquote), ends)
    block.at("list", _bounded(list_block), {"alt": ["paragraph", "blockquote"]})
    block.at("lheading", _underlined)
    block.at("table", _table, {"alt": ["paragraph"]})
    return parser


def _escape(state: StateInline, silent: bool) -> bool:
    """A backslash takes the meaning of a mark away, and both are shown."""
    if state.src[state.pos] != "\\":
        return False
    following = state.src[state.pos + 1 : state.posMax][:1]
    length = 2 if following and category(following)[0] in "PS" else 1
    return _literally(state, state.pos + length, silent)


def _formula(state: StateInline, silent: bool) -> bool:
    found = _FORMULA.match(state.src, state.pos, state.posMax)
    return found is not None and _literally(state, found.end(), silent)


def _literally(state: StateInline, end: int, silent: bool) -> bool:
    if not silent:
        state.pending += state.src[state.pos : end]
    state.pos = end
    return True


def _link(state: StateInline, silent: bool) -> bool:
    """The label of a link or an image, followed by the target as it is written."""
    start = state.pos
    state.pos += state.src.startswith("![", start)
    label_end = state.md.helpers.parseLinkLabel(state, state.pos, True) if state.src[state.pos] == "[" else -1
    if label_end < 0 or not link(state, silent):
        state.pos = start
        return False
    if not silent:
        begin = next(token for token in reversed(state.tokens) if token.type == "link_open")
        begin.type, state.tokens[-1].type = "label_open", "label_close"
        begin.tag = state.tokens[-1].tag = "link"
        state.pending += " "
        state.push("target", "link_url", 0).content = state.src[label_end + 1 : state.pos]
    return True


def _delimiters(rule: Callable[[StateInline, bool], bool]) -> Callable[[StateInline, bool], bool]:
    """The rule, but what may be an operator, a pattern or part of a name begins and ends nothing."""

    def careful(state: StateInline, silent: bool) -> bool:
        start, found = state.pos, len(state.delimiters)
        if not rule(state, silent):
            return False
        before, following = state.src[:start][-1:], state.src[state.pos :][:1]
        is_name = bool(_DUNDER.match(state.src, start))
        is_operator = state.pos - start == 1 and _ends_word(before) and following.isalnum()
        for delimiter in state.delimiters[found:]:
            delimiter.open &= _may_open(before, following) and not is_name
            delimiter.close &= not is_operator
        return True

    return careful


def _may_open(before: str, following: str) -> bool:
    """Whether emphasis may begin between two characters: not within a word, a formula, a path or a pattern."""
    if following in _NO_OPENING or _ends_word(before):
        return False
    return before.isalnum() or not before.isascii() or before.isspace() or before in _OPENS_AFTER


def _ends_word(character: str) -> bool:
    """Whether it is a digit, or a letter of a script that separates words by blanks (Latin, Greek, Cyrillic)."""
    return character.isalnum() and character < "\u0590"


def _formula_block(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """Lines of a formula, of which some would be items of a list or underlines."""
    line = state.src[state.bMarks[start] + state.tShift[start] : state.eMarks[start]]
    if state.is_code_block(start) or not _FORMULA_BEGINS.match(line):
        return False
    last = start
    while last < min(end, start + MAX_LINES) and not state.isEmpty(last) and state.sCount[last] >= state.blkIndent:
        last += 1
    text = state.getLines(start, last, state.blkIndent, False)
    found = _FORMULA.match(text.lstrip(" "))
    if not found or "\n" not in found[0]:
        return False
    if not silent:
        state.line = start + found[0].count("\n") + 1
        token = state.push("formula", "", 0)
        token.content, token.map = state.getLines(start, state.line, state.blkIndent, False), [start, state.line]
    return True


def _bounded(rule: Callable[..., bool]) -> Callable[..., bool]:
    def bounded(state: StateBlock, start: int, end: int, silent: bool) -> bool:
        return state.level < MAX_DEPTH and rule(state, start, end, silent)

    return bounded


def _underlined(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    before = len(state.tokens)
    if not lheading(state, start, end, silent):
        return False
    if len(state.getLines(state.line - 1, state.line, 0, False).strip()) >= MIN_UNDERLINE:
        return True
    del state.tokens[before:]
    return False


def _table(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """A table that shows all of its text: rows longer than the head would lose their end, and are no table."""
    before = len(state.tokens)
    if not table(state, start, end, silent):
        return False
    if silent:
        return True
    cells = "".join(token.content for token in state.tokens[before:] if token.type == "inline")
    rows = state.getLines(start, start + 1, 0, False) + state.getLines(start + 2, state.line, 0, False)
    if cells.translate(_IN_CELLS) == rows.replace("\n", "").translate(_IN_CELLS):
        return True
    del state.tokens[before:]
    return False


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
    """Code in the colors of its language; if its fence says more than the language, that stands above the code."""

    style_name = "markdown.code_block"

    @classmethod
    def create(cls, markdown: markdown.Markdown, token: Token) -> CodeBlock:
        return cls(token.markup, token.info.strip(), markdown.code_theme)

    def __init__(self, fence: str, info: str, theme: str):
        self.fence, self.info, self.theme = fence, info, theme

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        code = self.text.plain.rstrip()
        if not code:
            yield Text(self.fence + self.info)
            return
        syntax = Syntax(code, self.info.partition(" ")[0] or "text", theme=self.theme, word_wrap=True, padding=1)
        if self.info and (" " in self.info or syntax.lexer is None):
            yield Text(self.info, "dim")
        yield syntax


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
    lines = console.render_lines(content, options.update(width=room), style=style) or [[]]
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
