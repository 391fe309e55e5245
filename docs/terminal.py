#!/usr/bin/env python3
"""Draws docs/terminal.svg, the picture in the README: `make docs`.

A real shell in a pseudo-terminal runs `gptoss-mlx demo`; pyte, a terminal emulator, says what is on the screen in the
end. Answers are greedy, so that the text is always the same; the file is written again only where more than times and
speeds has changed.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from xml.sax.saxutils import escape

import pexpect
import pyte

PICTURE = Path(__file__).with_name("terminal.svg")
ROWS, COLUMNS = 34, 96
SECONDS = 60  # to wait for what the program is expected to print

CELL_WIDTH, ROW_HEIGHT, FONT_SIZE, MARGIN = 8.4, 18, 14, 14
FONT = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
BACKGROUND, FOREGROUND = "#16181d", "#d7dae0"
COLORS = {
    "black": "#16181d",
    "red": "#f07178",
    "green": "#a5d173",
    "brown": "#e6c06f",
    "blue": "#7aa6e8",
    "magenta": "#c792ea",
    "cyan": "#7fd1de",
    "white": "#d7dae0",
    "brightblack": "#7d8493",
    "brightred": "#ff8b92",
    "brightgreen": "#c3e88d",
    "brightbrown": "#ffd98a",
    "brightblue": "#9cc4ff",
    "brightmagenta": "#e0b0ff",
    "brightcyan": "#a3ecf7",
    "brightwhite": "#ffffff",
}
FAINT = {2: (90,), 22: (22, 39)}
MEASURED = re.compile(r"\d+(\.\d+)? (tokens/s|[kMG]?B/s|MB|s)\b|\d+:\d\d:\d\d")


class Screen(pyte.Screen):
    """A screen that shows faint text in gray, which pyte would show like any other."""

    def select_graphic_rendition(self, *attributes: int, private: bool = False) -> None:
        if attributes[:1] not in ((38,), (48,)):  # colors, whose parts are no attributes
            attributes = tuple(part for number in attributes for part in FAINT.get(number, (number,)))
        super().select_graphic_rendition(*attributes)


def recorded() -> Screen:
    """The screen of a terminal in which `gptoss-mlx demo` has run and waits for a message."""
    screen = Screen(COLUMNS, ROWS)
    stream = pyte.ByteStream(screen)
    with tempfile.TemporaryDirectory() as home:
        environment = {
            "HOME": home,
            "GPTOSS_MLX_HOME": home,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "TERM": "xterm-256color",
            "LC_ALL": "C.UTF-8",
            "PS1": "$ ",
        }
        shell = pexpect.spawn("/bin/sh", env=environment, dimensions=(ROWS, COLUMNS))
        screen.write_process_input = shell.send  # a terminal answers where its cursor is

        def wait(pattern: str) -> None:
            until = time.monotonic() + SECONDS
            while not re.search(pattern, text_of(screen) + "\n"):
                if time.monotonic() > until:
                    sys.exit(f"no {pattern!r} on\n{text_of(screen)}")
                with suppress(pexpect.TIMEOUT):
                    stream.feed(shell.read_nonblocking(65536, timeout=1))

        wait(r"\$")
        shell.send("gptoss-mlx demo\r")
        wait(r"sunny in Bermi\.(.|\n)*/help")
        wait(r"\n>(.|\n)*tokens \(")
        shell.close(force=True)
    return screen


def text_of(screen: Screen) -> str:
    return "\n".join(row.rstrip() for row in screen.display).rstrip()


def svg(screen: Screen) -> str:
    """The screen as a picture; rows at its end that are empty are left out."""
    rows = text_of(screen).count("\n") + 1
    width, height = COLUMNS * CELL_WIDTH + 2 * MARGIN, rows * ROW_HEIGHT + 2 * MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}">',
        "<title>gptoss-mlx demo, in a terminal</title>",
        f'<rect width="100%" height="100%" rx="8" fill="{BACKGROUND}"/>',
        f'<g font-family="{FONT}" font-size="{FONT_SIZE}" fill="{FOREGROUND}" xml:space="preserve">',
    ]
    for number in range(rows):
        cells = [screen.buffer[number][column] for column in range(COLUMNS)]
        column = 0
        for style, run in groupby(cells, key=_style):
            text = "".join(cell.data for cell in run)
            if words := text.strip():
                x = MARGIN + (column + text.index(words)) * CELL_WIDTH
                y = MARGIN + (number + 0.75) * ROW_HEIGHT
                length = f'textLength="{len(words) * CELL_WIDTH:g}"'
                lines.append(f'<text x="{x:g}" y="{y:g}" {length}{style}>{escape(words)}</text>')
            column += len(text)
    return "\n".join([*lines, "</g>", "</svg>", ""])


def _style(cell: pyte.screens.Char) -> str:
    """Attributes of a text in SVG."""
    color = COLORS.get(cell.fg, f"#{cell.fg}")
    return (
        ("" if cell.fg == "default" else f' fill="{color}"')
        + (' font-weight="bold"' if cell.bold else "")
        + (' font-style="italic"' if cell.italics else "")
    )


def unmeasured(picture: str) -> str:
    """The words of a picture, without times and speeds."""
    return re.sub(r"<[^>]*>| +", " ", MEASURED.sub("#", picture))


def main() -> None:
    picture = svg(recorded())
    if not PICTURE.exists() or unmeasured(PICTURE.read_text(encoding="utf-8")) != unmeasured(picture):
        PICTURE.write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main()
