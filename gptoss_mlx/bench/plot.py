"""Results as a picture: tokens per second against the depth of the context, and memory against its length.

Draws with matplotlib, which only who wants a picture has to install.
"""

from __future__ import annotations

import io
import logging
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import GptOssError, printable
from ..files import replace_file
from ..memory.system import size_text
from ..untrusted import os_error_text
from .results import Results, Speed
from .tables import heading

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = {".png": "png", ".svg": "svg"}
INCHES = (12, 5)
DOTS_PER_INCH = 150
MAX_LINE = 110  # of the title, in characters

# Okabe and Ito's, which colour-blind people can distinguish too. The markers are fewer, so that colours that are used
# again come with other markers.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v")
NEUTRAL = "#444444"
MAX_LABELS = 6  # that fit below a panel
ROOM = 2  # above and below the speeds, as a factor: so wide a scale always has two of 1, 2, 5, 10, ...

# The same bytes for the same results.
STYLE: Any = {"svg.hashsalt": "gptoss-mlx", "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
METADATA = {"png": {"Software": None}, "svg": {"Date": None}}


def check_plot(path: Path) -> None:
    """Raises GptOssError where `save_plot` could not draw `path`: ask before a long measurement."""
    if path.suffix.lower() not in FORMATS:
        raise GptOssError(f"cannot draw {path}: a plot is a .png or a .svg file")
    if not os.access(path.parent, os.W_OK):
        raise GptOssError(f"cannot write {path}: its folder is not there, or you may not write into it")
    # Its messages on fonts, and on folders that it cannot write, do not help whoever wants a plot.
    logging.getLogger("matplotlib").setLevel(logging.CRITICAL)
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise GptOssError("--plot draws with matplotlib: pip install 'gptoss-mlx[plot]'") from None
    except Exception as error:  # whatever is wrong with MPLBACKEND, a person's matplotlibrc, or the installation
        raise GptOssError(f"matplotlib does not start: {os_error_text(error)}") from None


def save_plot(results: Results, path: Path) -> None:
    """Draw `results` into a .png or .svg file, which is whole at every moment. Raises GptOssError."""
    check_plot(path)
    import matplotlib
    from matplotlib.figure import Figure

    kind = FORMATS[path.suffix.lower()]
    drawn = io.BytesIO()
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that the font lacks
        matplotlib.rcdefaults()  # a person's own settings are for their own plots
        matplotlib.rcParams.update(STYLE)
        canvas = Figure(INCHES, DOTS_PER_INCH, layout="constrained")
        canvas.suptitle("\n".join(map(_line, heading(results))), fontsize=10, parse_math=False)
        speed, memory = canvas.subplots(1, 2)
        speed.set(title="Speed: median, least and most", xlabel="depth of the context (tokens)", ylabel="tokens/s")
        memory.set(title="Memory", xlabel="length of the context (tokens)", ylabel="memory (GB)")
        _draw_speed(speed, results)
        _draw_memory(memory, results)
        canvas.savefig(drawn, format=kind, metadata=METADATA[kind])
    replace_file(path, drawn.getvalue())


def _line(text: str) -> str:
    text = printable(text)
    return text if len(text) <= MAX_LINE else f"{text[: MAX_LINE - 3]}..."


def _draw_speed(axes: Axes, results: Results) -> None:
    """A line for prefill of each size and for decoding, with the limit of each beside it. Prefill is many times as fast
    as decoding: with a logarithm both are to be seen."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    by_size: dict[tuple[str, int], list[Speed]] = {}
    for speed in sorted(results.speeds, key=lambda speed: speed.depth):
        by_size.setdefault((speed.kind, speed.tokens), []).append(speed)
    for number, ((kind, tokens), speeds) in enumerate(sorted(by_size.items())):
        color, marker = COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)]
        depths, spreads = [speed.depth for speed in speeds], [speed.tokens_per_second for speed in speeds]
        errors = [[each.median - each.least for each in spreads], [each.most - each.median for each in spreads]]
        style: dict[str, Any] = {"color": color, "marker": marker, "markersize": 5, "capsize": 3}
        axes.errorbar(depths, [each.median for each in spreads], errors, label=f"{kind} of {tokens:,} tokens", **style)
        if limits := [(speed.depth, speed.limit) for speed in speeds if speed.limit]:
            # A line at a single depth cannot be seen: its limit is a dash.
            axes.plot(*zip(*limits, strict=True), color=color, linestyle="--", linewidth=1, marker="_", markersize=14)
    if any(speed.limit for speed in results.speeds):
        axes.plot([], [], color=NEUTRAL, linestyle="--", linewidth=1, label="limit of each")
    if _finish(axes, {speed.depth for speed in results.speeds}):
        axes.set_yscale("log")
        least, most = axes.dataLim.intervaly
        axes.set_ylim(least / ROOM, most * ROOM)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def _draw_memory(axes: Axes, results: Results) -> None:
    planned, peak = dict(results.memory.by_context), results.memory.peak
    sizes = [size / 1e9 for size in planned.values()]
    axes.plot(list(planned), sizes, color=COLORS[0], marker="o", markersize=5, label="planned")
    if planned and peak is not None:
        # Keys and values take memory as far as there are tokens, not as far as there is room.
        used = max((speed.depth + speed.tokens for speed in results.speeds), default=results.setup.context)
        style: dict[str, Any] = {"color": COLORS[1], "linestyle": "", "marker": "D", "markersize": 8}
        axes.plot(used, peak / 1e9, label=f"most that was measured, {size_text(peak)}", **style)
    if _finish(axes, set(planned)):
        axes.set_ylim(0, 1.1 * max(*sizes, (peak or 0) / 1e9))


def _finish(axes: Axes, depths: set[int]) -> bool:
    """Draw the axis of tokens, and the legend; returns whether there is anything to see. Powers of two are equally far
    apart, and 0 lies before them; the deepest has a label, and some of the others."""
    if not depths:
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "not known", transform=axes.transAxes, ha="center", va="center", color=NEUTRAL)
        return False
    if 0 in depths:
        axes.set_xscale("symlog", base=2, linthresh=min(depths - {0}, default=1))
    else:
        axes.set_xscale("log", base=2)
    marked = sorted(depths, reverse=True)[:: -(-len(depths) // MAX_LABELS)]
    axes.set_xticks(marked, [f"{depth:,}" for depth in marked])
    axes.minorticks_off()
    axes.grid(axis="y", alpha=0.3)
    axes.legend(ncols=2, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    return True
