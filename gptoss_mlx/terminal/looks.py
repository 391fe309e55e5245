"""Colors that can be read on a light and on a dark terminal, and on one that does not say which it is.

All are of the 240 colors that terminals do not redefine. Each has a contrast of at least 4.5 to 1 against the
background that it is for: black, white, or both. Where there are fewer colors, or none are wanted, attributes take
their place.
Knows rich's styles; what is drawn with them, others know.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.console import Console
    from rich.theme import Theme

Background = Literal["dark", "light"]


@dataclass(frozen=True)
class Palette:
    """Styles as rich writes them."""

    muted: str
    accent: str
    keyword: str
    name: str
    string: str
    number: str


PALETTES: dict[Background | None, Palette] = {
    "dark": Palette("color(247)", "color(80)", "color(176)", "color(111)", "color(150)", "color(216)"),
    "light": Palette("color(240)", "color(24)", "color(90)", "color(25)", "color(22)", "color(94)"),
    None: Palette("color(243)", "color(63)", "color(98)", "color(63)", "color(29)", "color(131)"),
}
ATTRIBUTES = Palette("dim", "default", "bold", "default", "default", "default")


def background_of(environment: str) -> Background | None:
    """What COLORFGBG says, such as "15;0": the number of the background is the last one."""
    last = environment.rpartition(";")[2]
    if not last.isascii() or not last.isdigit() or int(last) > 15:
        return None
    return "dark" if int(last) in (*range(7), 8) else "light"


def palette_for(console: Console, background: Background | None) -> Palette:
    has_colors = console.color_system in ("256", "truecolor") and not console.no_color
    return PALETTES[background] if has_colors else ATTRIBUTES


def background_of_environment() -> Background | None:
    return background_of(os.environ.get("COLORFGBG", ""))


def theme_of(palette: Palette) -> Theme:
    """The styles that rich draws Markdown with, those with a color of its own replaced, and `muted`."""
    from rich.theme import Theme

    muted, accent = palette.muted, palette.accent
    styles = dict.fromkeys(("code", "h3", "kbd"), f"bold {accent}")
    styles |= dict.fromkeys(("h2", "link_url"), f"underline {accent}")
    styles |= dict.fromkeys(("block_quote", "hr", "h6", "table.border"), muted)
    styles |= {"h4": f"italic {accent}", "h7": f"italic {muted}", "link": accent, "table.header": "bold"}
    styles |= dict.fromkeys(("code_block", "list", "item.number"), "none")
    return Theme({"muted": muted} | {f"markdown.{name}": style for name, style in styles.items()})
