"""Colors that can be read, and the terminal's own background, which is asked while a person types."""

import re
import sys

import pytest
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from pygments.token import Token
from rich.console import Console

from gptoss_mlx.terminal.background import BackgroundQuestion, background_of_color
from gptoss_mlx.terminal.looks import ATTRIBUTES, PALETTES, background_of, palette_for, theme_of
from gptoss_mlx.terminal.markdown import code_theme
from terminal.terminals import Terminal
from terminal.test_input import Typist

MIN_CONTRAST = 4.5
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
BEHIND = {"dark": [BLACK], "light": [WHITE], None: [BLACK, WHITE]}

# Reads messages, and reports each of them and each background that it hears of.
ASKING = """
import sys
from pathlib import Path
from gptoss_mlx.terminal.input import TypedInput
messages = TypedInput(lambda: None, {}, Path(sys.argv[1]), None, lambda background: print("heard", background))
print("ready")
while (text := messages.read("")) is not None:
    print(f"got {text!r} {len(text)} 0")
print("the end")
"""
QUESTION = r"\x1b\]11;\?\x1b\\\x1b\[c"
KIND = "\x1b[?62;22c"
DARK, LIGHT = "\x1b]11;rgb:0000/2b2b/3636\x1b\\", "\x1b]11;rgb:ff/ff/ff\x07"


def luminance(rgb) -> float:
    """As WCAG 2 defines it."""
    shares = [part / 255 for part in rgb]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other) -> float:
    darker, lighter = sorted([luminance(one), luminance(other)])
    return (lighter + 0.05) / (darker + 0.05)


def styles_of(palette):
    console = Console(theme=theme_of(palette))
    names = [name for name in theme_of(palette).styles if name.startswith("markdown.")]
    yield from (console.get_style(name) for name in ["muted", *names])
    theme = code_theme(palette)
    for kind in ("Keyword", "Name", "Literal", "String", "Number", "Comment", "Operator", "Generic", "Text", "Error"):
        yield theme.get_style_for_token(getattr(Token, kind))
    yield from theme.style_map.values()


@pytest.mark.parametrize("background", PALETTES)
def test_every_style_can_be_read(background):
    colored = [style.color for style in styles_of(PALETTES[background]) if style.color]
    assert len({color.number for color in colored}) >= 5
    for color in colored:
        assert color.number >= 16  # the others are the user's
        for behind in BEHIND[background]:
            assert contrast(color.get_truecolor(), behind) >= MIN_CONTRAST, color
    assert not any(style.bgcolor for style in styles_of(PALETTES[background]))


@pytest.mark.parametrize(
    ("options", "palette"),
    [
        ({"color_system": "256"}, PALETTES["light"]),
        ({"color_system": "truecolor"}, PALETTES["light"]),
        ({"color_system": "standard"}, ATTRIBUTES),
        ({"color_system": "256", "no_color": True}, ATTRIBUTES),
    ],
)
def test_where_there_are_no_such_colors_attributes_take_their_place(options, palette):
    assert palette_for(Console(force_terminal=True, **options), "light") == palette
    colors = {style.color.name for style in styles_of(ATTRIBUTES) if style.color}
    assert colors == {"default"}


@pytest.mark.parametrize(
    ("said", "background"),
    [
        *(("15;0", "dark"), ("0;15", "light"), ("0;default;7", "light"), ("7;8", "dark"), ("12;6", "dark")),
        *(("", None), ("15;default", None), ("0;255", None), ("0;²", None)),
    ],
)
def test_what_the_environment_says(said, background):
    assert background_of(said) == background


@pytest.mark.parametrize(
    ("color", "background"),
    [
        *(("rgb:0000/0000/0000", "dark"), ("rgb:ffff/ffff/ffff", "light"), ("rgb:f/f/e", "light")),
        *(("rgba:1e1e/1e1e/1e1e/ffff", "dark"), ("rgb:fdfd/f6f6/e3e3", "light"), ("rgb:00/2b/36", "dark")),
        *(("?", None), ("", None), ("rgb:1/2", None), ("rgb:12345/0/0", None)),
    ],
)
def test_what_a_terminal_says(color, background):
    assert background_of_color(color) == background


class Asked(Typist):
    """A terminal that says of itself what a test has it say."""

    def __init__(self, environment, folder, **options):
        super().__init__(ASKING, [folder / "history"], environment, **options)
        self.screen.report_device_attributes = lambda *args, **kwargs: None


@pytest.fixture
def asked(environment, tmp_path):
    def start(**options):
        terminal = Asked(environment, tmp_path, **options)
        terminal.expect(QUESTION)
        return terminal.prompt()

    return start


def test_the_answer_is_heard_between_keys_and_asked_for_once(asked):
    terminal = asked()
    assert terminal.keys(f"hel{DARK}{KIND}lo\r").got() == "hello"
    assert "heard dark" in terminal.sent.decode()
    assert terminal.prompt().keys("more\r").got() == "more"
    terminal.prompt().keys("\x04")
    terminal.end()
    assert len(re.findall(QUESTION.encode(), terminal.sent)) == 1


@pytest.mark.parametrize("answer", [DARK, LIGHT, KIND])
def test_an_answer_in_two_parts(answer):
    for place in range(1, len(answer)):
        heard = []
        with create_pipe_input() as source:
            BackgroundQuestion(source, DummyOutput(), heard.append)
            keys = []
            for text in (f"a{answer[:place]}", f"{answer[place:]}b"):
                source.send_text(text)
                keys += source.read_keys()
                if place > 2:  # then it is more than a key, however long the rest takes
                    keys += source.flush_keys()
        assert "".join(key.data for key in keys) == "ab"
        assert heard == {DARK: ["dark"], LIGHT: ["light"], KIND: []}[answer]


@pytest.mark.parametrize("keys", ["\x1b", "\x1b]", "\x1b[", "\x1b]1x", "\x1b[A", "\x1b[?x"])
def test_keys_that_begin_like_an_answer_are_keys(keys):
    with create_pipe_input() as source:
        BackgroundQuestion(source, DummyOutput(), pytest.fail)
        source.send_text(keys)
        assert "".join(key.data for key in [*source.read_keys(), *source.flush_keys()]) == keys


def test_a_terminal_that_never_answers_loses_nothing(asked):
    terminal = asked()
    assert terminal.keys("one\rtwo\r").got() == "one"
    assert terminal.got() == "two"
    assert terminal.prompt().keys("\x1b[D\x1bbthree\r").got() == "three"
    terminal.prompt().keys("\x04")
    assert "the end" in terminal.end()


def test_an_answer_that_comes_late_is_heard_and_is_no_text(asked):
    terminal = asked()
    assert terminal.keys("one\r").got() == "one"
    assert terminal.prompt().keys(f"t{DARK}w{KIND}o\r").got() == "two"
    assert "heard dark" in terminal.sent.decode()
    terminal.child.close(force=True)


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"TERM": "linux"}])
def test_where_nothing_is_asked(environment, tmp_path, variables):
    terminal = Asked(environment, tmp_path, **variables)
    terminal.expect("ready")
    assert terminal.keys("one\r").got() == "one"
    terminal.prompt().keys("\x04").end()
    assert b"]11;" not in terminal.sent


# A chat of which the screen and the editor are real, and the answers are code.
CODE = """
import sys
from pathlib import Path
from gptoss_mlx.terminal.input import TypedInput
from gptoss_mlx.terminal.rich_screen import RichScreen
screen = RichScreen(show_reasoning=None)
messages = TypedInput(lambda: None, {}, Path(sys.argv[1]), None, screen.use_background)
while messages.read(""):
    screen.content("```python\\nimport this\\n```\\n")
    screen.end()
    screen.note("a note")
"""


@pytest.mark.parametrize(
    ("answer", "environment_says", "background"),
    [(DARK, "", "dark"), (LIGHT, "", "light"), (LIGHT, "15;0", "light"), ("", "15;0", "dark"), ("", "", None)],
)
def test_code_and_notes_have_the_colors_of_the_background(environment, tmp_path, answer, environment_says, background):
    changes = {"COLORFGBG": environment_says, "COLORTERM": ""}
    terminal = Terminal([sys.executable, "-c", CODE, str(tmp_path / "history")], environment, **changes)
    terminal.wait("^>")
    terminal.keys(f"{answer}code\r").wait("a note")
    palette = PALETTES[background]
    for style, text in ((palette.keyword, "import"), (palette.muted, "a note")):
        number = re.search(r"\d+", style)[0]
        assert f"\x1b[38;5;{number}m{text}".encode() in terminal.sent
    terminal.child.close(force=True)
