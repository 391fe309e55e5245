"""What is drawn again and again: how often, and what of it can no longer change."""

import io
import re
import time

import pytest
from rich.console import Console
from rich.text import Text

from gptoss_mlx.terminal import progress_bars
from gptoss_mlx.terminal.region import Region
from gptoss_mlx.terminal.rich_screen import finished_blocks


@pytest.mark.parametrize(("wait", "shown"), [(0.0, True), (60.0, False)])
def test_a_long_prompt_shows_how_far_it_was_read(monkeypatch, wait, shown):
    monkeypatch.setattr(progress_bars, "SHOWN_AFTER", wait)
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    reading = progress_bars.PrefillProgress(console)
    reading(0, 10000)
    time.sleep(0.1)
    reading(2500, 10000)
    time.sleep(0.5)
    reading(10000, 10000)
    written = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", console.file.getvalue())
    assert bool(re.search(r"reading \S+ 2,500/10,000 tokens, [\d,]+ tokens/s, 0 s left", written)) == shown


def test_nothing_is_shown_of_a_prompt_where_there_is_no_terminal():
    console = Console(file=io.StringIO())
    progress_bars.PrefillProgress(console)(0, 10)
    assert console.file.getvalue() == ""


@pytest.mark.parametrize(("seconds", "drawn"), [(0.0, 12), (0.1, 2)])
def test_drawing_takes_little_of_the_time(monkeypatch, seconds, drawn):
    """At most twelve times a second, and a quarter of the time where it takes long."""

    class Content:
        def __rich_console__(self, console, options):
            clock[0] += seconds
            yield Text("more")

    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    region = Region(console)
    while clock[0] < 101:
        region.draw(Content())
        clock[0] += 0.001
    assert drawn <= console.file.getvalue().count("more") <= drawn + 1


@pytest.mark.parametrize(
    ("text", "done"),
    [
        ("one line", ""),
        ("one\n\ntwo", "one\n\n"),
        ("one\n\n", "one\n\n"),
        ("```\ncode\n\nmore", ""),
        ("```\ncode\n\n```\n\nafter", "```\ncode\n\n```\n\n"),
        ("~~~~\n```\n\n~~~~\n\nafter", "~~~~\n```\n\n~~~~\n\n"),
    ],
)
def test_blocks_that_can_no_longer_change(text, done):
    assert finished_blocks(text) == (done, text[len(done) :])


def test_what_came_while_it_was_hidden_is_drawn_at_once():
    """Not only with the next event, which may be long in coming."""
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    region = Region(console)
    region.draw(Text("before"))
    region.hide()
    region.draw(Text("meanwhile"))
    assert "meanwhile" not in console.file.getvalue()
    region.show()
    assert console.file.getvalue().endswith("meanwhile\r")
    region.hide()
    region.draw(Text("the end of an answer"))
    region.clear()
    region.show()
    assert "the end" not in console.file.getvalue()
