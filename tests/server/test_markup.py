"""Markdown as HTML: nothing that a model writes is markup, and a text that grows ends as the whole would."""

import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_mlx.server.markup import ATTRIBUTES, MATH_TAGS, TAGS, BlockStream, as_html, blocks_of

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[a](javascript:alert(1))",
    "[a](JaVaScRiPt:alert(1))",
    "[a](data:text/html,<script>alert(1)</script>)",
    "[a](//evil.example)",
    '[a](https://x.example/" onmouseover="alert(1))',
    "![a](https://x.example/pixel.png)",
    "<https://x.example>",
    "$\\text{<img src=x onerror=alert(1)>}$",
    "$\\href{javascript:alert(1)}{x}$",
    "\\[\\class{evil}{x}\\style{color:red}{y}\\]",
    "```html\n<script>alert(1)</script>\n```",
    '```"><script>alert(1)</script>\nx\n```',
    "| <b>a</b> | b |\n|---|---|\n| <i>1</i> | 2 |",
    "&lt;script&gt; &#60;b&#62;",
    "\u202eabc",
]
LETTERS = "ab1 *_`#-+=|[]()!~&<>$\\\n\"'.:"
FRAGMENTS = st.sampled_from(
    (
        *(
            "| a | b |\n",
            "|---|---|\n",
            "- a\n",
            "1. ",
            "    ",
            "```\n",
            "~~~",
            "\n",
            "\n\n",
            "> ",
            "# ",
            "**",
            "\\[\n",
        ),
        *("\\]\n", "$$\n", "---\n", "===\n", "[a](http://x)", "a\nb\n\n", "text ", "* ", "```py\n", "  "),
        *("\\begin{a}\n", "\\end{a}\n"),
    )
)
TEXTS = st.lists(st.one_of(FRAGMENTS, st.text(LETTERS, max_size=6)), max_size=25).map("".join)


def check(html):
    """Well-formed, of known elements and attributes, with links to the web alone."""
    closed = html.replace("<br>", "<br/>").replace("<hr>", "<hr/>").replace("&nbsp;", " ")
    root = ET.fromstring(f"<root>{closed}</root>")
    for element in root.iter():
        if element is root:
            continue
        assert element.tag in TAGS | MATH_TAGS
        assert element.attrib.keys() <= ATTRIBUTES.get(element.tag, set()) | {"rel", "target"}
        if element.tag == "a":
            assert re.match("(https?://|mailto:)", element.get("href", ""), re.IGNORECASE)
            assert element.get("rel") == "noopener noreferrer"


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_is_markup(text):
    check(as_html(text))


@given(TEXTS)
def test_any_text_is_safe(text):
    check(as_html(text))


@given(TEXTS, st.lists(st.integers(0, 200), max_size=12))
def test_a_growing_text_ends_as_the_whole(text, cuts):
    stream, shown, tail, begin = BlockStream(), [], [], 0
    for end in [*sorted(min(cut, len(text)) for cut in cuts), len(text)]:
        stream.add(text[begin:end])
        settled, tail = stream.render()
        shown += settled
        begin = end
    assert [*shown, *tail] == blocks_of(text)


def test_what_is_settled_is_not_read_again():
    stream = BlockStream()
    for number in range(50):
        stream.add(f"Paragraph {number}.\n\n")
        stream.render()
        assert len(stream._text) < 60


def test_formulas_are_readable():
    assert "<mfrac>" in as_html("a $\\frac{1}{2}$")
    assert as_html("$\\frac{$") == '<p dir="auto"><code class="formula">$\\frac{$</code></p>'
    assert '<math display="block">' in as_html("\\[\nx\n\\]")


def test_code_is_colored_and_can_be_copied():
    html = as_html("```python\ndef f(): pass\n```")
    assert '<span class="c-k">def</span>' in html
    assert 'class="copy"' in html
    assert "c-k" not in as_html("```unknown\ndef f(): pass\n```")
