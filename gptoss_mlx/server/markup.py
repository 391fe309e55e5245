"""Markdown as HTML that is safe to show: what a model writes is text and formatting, never markup of its own.

Each token is written here, with its text escaped, and the whole passes a sanitizer afterwards. Pictures are links, and
links lead to the web or to a mail. Formulas become MathML, or stay as they are written; code is colored by classes.

While an answer arrives, only what is not settled yet is rendered again (`BlockStream`).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape, unescape
from xml.etree.ElementTree import Element

import nh3
from latex2mathml.converter import convert_to_element
from markdown_it.token import Token
from pygments import lex
from pygments.lexers import get_lexer_by_name
from pygments.token import STANDARD_TYPES
from pygments.token import Token as AnyToken

from ..chat.markdown import FORMULA, markdown_parser


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


MAX_COLORED = 10_000  # characters of code: more is shown in one color
MAX_SECONDS = 0.2  # for the same: the lexers of some languages take time with the square of what is no code of theirs
LANGUAGES = _words("""
    bash c c++ console cpp csharp css dart diff docker go haskell html http java javascript js json jsx julia kotlin
    latex lua makefile nix objective-c perl php powershell py python r ruby rust scala scss sh shell sql swift toml
    ts tsx typescript xml yaml zig
""")
MAX_LINK = 2000  # characters
DELIMITERS = ("\\(", "\\)"), ("\\[", "\\]"), ("$$", "$$"), ("$", "$")

LINK = re.compile(r"(?:https?://|mailto:)[^\s<>]+", re.IGNORECASE)
BARE_LINK = re.compile(r"""https?://[^\s<>"'`]*[^\s<>"'`.,;:!?()\[\]{}*_]""", re.IGNORECASE)
_ENTITY = re.compile(r"&#x[0-9A-Fa-f]{2,6};")  # as latex2mathml writes operators

MATH_TAGS = _words("""
    math menclose mfrac mi mmultiscripts mn mo mover mpadded mphantom mprescripts mroot mrow ms mspace msqrt mstyle
    msub msubsup msup mtable mtd mtext mtr munder munderover none
""")
MATH_ATTRIBUTES = _words("""
    accent accentunder columnalign columnspacing displaystyle fence height largeop linethickness lspace mathsize
    mathvariant maxsize minsize movablelimits notation rowspacing rspace scriptlevel separator stretchy symmetric
    width
""")
TAGS = _words("""
    a blockquote br button code del div em h1 h2 h3 h4 h5 h6 hr li ol p pre span strong table tbody td th thead tr
    ul
""")
ATTRIBUTES = {
    "a": {"href"},
    "button": {"class", "type"},
    "code": {"class"},
    "div": {"class", "tabindex"},
    "li": {"dir"},
    "ol": {"start"},
    "p": {"dir"},
    "pre": {"tabindex"},
    "span": {"class"},
    "math": {"display"},
    **{tag: {"dir"} for tag in ("h1", "h2", "h3", "h4", "h5", "h6", "blockquote")},
    **{tag: {"class", "dir"} for tag in ("td", "th")},
} | {tag: set(MATH_ATTRIBUTES) for tag in MATH_TAGS - {"math"}}
CLEANER = nh3.Cleaner(
    tags=set(TAGS | MATH_TAGS),
    attributes={tag: set(names) for tag, names in ATTRIBUTES.items()},
    url_schemes={"http", "https", "mailto"},
    link_rel="noopener noreferrer",
    set_tag_attribute_values={"a": {"target": "_blank"}},
)


def as_html(text: str) -> str:
    return "".join(blocks_of(text))


def blocks_of(text: str) -> list[str]:
    """The HTML of each block of a text, one after another."""
    return [_html(block) for block in _blocks(markdown_parser().parse(text))]


class BlockStream:
    """Renders a text while it grows. What comes before the last blank line that a new block follows is settled, because
    no more text can change it, and is not looked at again."""

    def __init__(self) -> None:
        self._text = ""

    def add(self, text: str) -> None:
        self._text += text

    def render(self) -> tuple[list[str], list[str]]:
        """The blocks that are settled now, and those that may still change."""
        blocks = _blocks(markdown_parser().parse(self._text))
        lines = self._text.split("\n")
        last = max(filter(lambda index: _is_settled_before(blocks[index], lines), range(1, len(blocks))), default=0)
        html = [_html(block) for block in blocks]
        if last:
            self._text = "\n".join(lines[_first_line(blocks[last]) :])
        return html[:last], html[last:]


def _is_settled_before(block: Sequence[Token], lines: Sequence[str]) -> bool:
    """Whether a blank line precedes a block, and its first line is complete."""
    first = _first_line(block)
    return not lines[first - 1].strip() and first < len(lines) - 1


def _first_line(block: Sequence[Token]) -> int:
    return block[0].map[0] if block[0].map else 0


def _blocks(tokens: Sequence[Token]) -> list[list[Token]]:
    """The tokens of each block at the top."""
    blocks: list[list[Token]] = []
    for token in tokens:
        if token.level == 0 and token.nesting >= 0:
            blocks.append([])
        blocks[-1].append(token)
    return blocks


def _html(block: Sequence[Token]) -> str:
    return CLEANER.clean("".join(map(_token_html, block)))


def _token_html(token: Token) -> str:
    """A token of a block, with all that is in it. A paragraph of a tight list has no tags."""
    if token.type == "inline":
        return _inline_html(token.children or [])
    write = BLOCKS.get(token.type)
    if write:
        return write(token)
    if token.hidden or token.tag not in TAGS:
        return ""
    if token.nesting < 0:
        return f"</{token.tag}>"
    attributes = {name: str(value) for name, value in token.attrs.items() if name == "start"}
    if token.tag in ("td", "th") and "style" in token.attrs:  # text-align:right
        attributes["class"] = str(token.attrs["style"]).rpartition(":")[2]
    if "dir" in ATTRIBUTES.get(token.tag, ()):
        attributes["dir"] = "auto"
    return _tag(token.tag, attributes)


def _tag(name: str, attributes: Mapping[str, str]) -> str:
    written = "".join(f' {each}="{escape(value)}"' for each, value in attributes.items())
    return f"<{name}{written}>"


def _inline_html(tokens: Sequence[Token]) -> str:
    """Text and what is in it; the target of a link that leads nowhere safe is shown as it is written."""
    parts, open_links, hrefs = [], 0, [str(token.attrs["href"]) for token in tokens if token.type == "label_open"]
    leads = False
    for token in tokens:
        match token.type:
            case "label_open":
                href = hrefs.pop(0)
                leads, open_links = _is_safe(href), open_links + 1
                parts.append(f'<a href="{escape(href)}">' if leads else "")
            case "label_close":
                parts.append("</a>" if leads else "")
                open_links -= 1
            case "target":
                parts.append("" if leads else escape(f" {token.content}"))
            case "text":
                parts.append(escape(token.content) if open_links else _linked(token.content))
            case "code_inline":
                parts.append(f"<code>{escape(token.content)}</code>")
            case "formula":
                parts.append(formula_html(token.content))
            case "softbreak" | "hardbreak":
                parts.append("<br>")
            case _ if token.tag in TAGS:
                parts.append(f"<{'/' * (token.nesting < 0)}{token.tag}>")
            case _:
                parts.append(escape(token.content))
    return "".join(parts)


def _is_safe(href: str) -> bool:
    return len(href) <= MAX_LINK and LINK.fullmatch(href) is not None


def _linked(text: str) -> str:
    """Text in which addresses of the web are links."""
    parts, end = [], 0
    for found in BARE_LINK.finditer(text):
        link = escape(found[0])
        parts += [escape(text[end : found.start()]), f'<a href="{link}">{link}</a>' if _is_safe(found[0]) else link]
        end = found.end()
    return "".join([*parts, escape(text[end:])])


def _fence(token: Token) -> str:
    """Code in the colors of its language, below the name of the language and a button that copies it."""
    info = token.info.strip()
    code = _colored(token.content.rstrip("\n"), info.partition(" ")[0])
    head = f'<span class="language">{escape(info)}</span><button type="button" class="copy">Copy</button>'
    return f'<div class="code"><div class="bar">{head}</div><pre tabindex="0"><code>{code}</code></pre></div>'


def _colored(code: str, language: str) -> str:
    if language.lower() not in LANGUAGES or len(code) > MAX_COLORED:
        return escape(code)
    lexer = get_lexer_by_name(language.lower(), stripnl=False, ensurenl=False)
    parts, end = [], time.monotonic() + MAX_SECONDS
    for kind, text in lex(code, lexer):
        parts.append(_span(kind, text))
        if time.monotonic() > end:
            return escape(code)
    return "".join(parts)


def _span(kind: AnyToken, text: str) -> str:
    """The class is the first two letters of Pygments' own: the styles know no more."""
    while kind not in STANDARD_TYPES:
        kind = kind.parent
    name = STANDARD_TYPES[kind][:2]
    return f'<span class="c-{name}">{escape(text)}</span>' if name.strip("w") else escape(text)


def _formula_block(token: Token) -> str:
    found = FORMULA.search(token.content)
    assert found is not None
    around = token.content[: found.start()].strip(), token.content[found.end() :].strip()
    before, after = (f'<p dir="auto">{escape(text)}</p>' if text else "" for text in around)
    return f"{before}{formula_html(found[0])}{after}"


BLOCKS: dict[str, Callable[[Token], str]] = {
    "fence": _fence,
    "code_block": _fence,
    "formula": _formula_block,
    "table_open": lambda token: '<div class="wide" tabindex="0"><table>',
    "table_close": lambda token: "</table></div>",
    "hr": lambda token: "<hr>",
}


def formula_html(source: str) -> str:
    """MathML, or the source where it cannot be read."""
    opening, closing = next((pair for pair in DELIMITERS if source.startswith(pair[0])), ("", ""))
    text = source.removeprefix(opening).removesuffix(closing)
    is_block = opening in ("\\[", "$$", "")
    try:
        root = convert_to_element(text, display="block" if is_block else "inline")
        math = "".join(_mathml(root))
    except Exception:  # the library raises what it comes across, and a formula is readable as it is
        return f'<code class="formula">{escape(source)}</code>'
    return f'<div class="wide" tabindex="0">{math}</div>' if is_block else math


def _mathml(element: Element) -> Iterator[str]:
    """Written here, because the library does not escape what stands in a `\\text`."""
    kept = {name: value for name, value in element.attrib.items() if name in MATH_ATTRIBUTES or name == "display"}
    known = element.tag in MATH_TAGS
    yield _tag(element.tag, kept) if known else ""
    yield escape(_ENTITY.sub(lambda found: unescape(found[0]), element.text or ""))
    for child in element:
        yield from _mathml(child)
    yield f"</{element.tag}>" if known else ""
    yield escape(_ENTITY.sub(lambda found: unescape(found[0]), element.tail or ""))
