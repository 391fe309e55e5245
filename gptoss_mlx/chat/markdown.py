"""Markdown as models write it, parsed: each character of a text is in the tokens, unless it is one of Markdown's marks.

Markdown was made for people who see what becomes of their text. A model does not, and writes `Vec<T>`, `\\(E=mc^2\\)`,
`2*3*4` and `__init__` outside of code. So HTML and entities are text here, a backslash stays where it is written,
formulas are tokens of their own, and asterisks and underscores are marks only where they can be no operators.

Knows Markdown; how its tokens look, on a terminal or a page, others know.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING
from unicodedata import category

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock, blockquote, lheading, list_block, table
from markdown_it.rules_inline import StateInline, emphasis, link, strikethrough

if TYPE_CHECKING:
    from markdown_it.ruler import RuleOptionsType

MAX_DEPTH = 20  # levels of quotes and lists; what is nested deeper is text
MIN_UNDERLINE = 3  # characters below a heading: fewer are an operator, or a line of a formula
MAX_FORMULA = 2000  # characters
MAX_LINES = 50  # of a formula

# Where formulas begin and end; a dollar that is followed by a blank, or closes before a word, is money.
FORMULA = re.compile(
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


class _Parser(MarkdownIt):
    """Takes any text as the target of a link, and leaves it as it is written."""

    def validateLink(self, url: str) -> bool:
        return True

    def normalizeLink(self, url: str) -> str:
        return url


@cache
def markdown_parser() -> MarkdownIt:
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
    found = FORMULA.match(state.src, state.pos, state.posMax)
    if not found:
        return False
    if not silent:
        state.push("formula", "", 0).content = found[0]
    state.pos = found.end()
    return True


def _literally(state: StateInline, end: int, silent: bool) -> bool:
    if not silent:
        state.pending += state.src[state.pos : end]
    state.pos = end
    return True


def _link(state: StateInline, silent: bool) -> bool:
    """The label of a link or an image (`label_open`, `label_close`), followed by its `target` as it is written."""
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
    found = FORMULA.match(text.lstrip(" "))
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
