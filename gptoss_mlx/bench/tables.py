"""A benchmark's figures as tables of text: what is told, in which order, with how many digits.

How a table looks, in a terminal or in Markdown, is left to `report` and `formats`. Text that came from a model's folder
is in the cells as it was found: who shows a cell has to escape it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ..memory.system import size_text
from .figures import Figures, Speed, Spread, Stage

# From where on a condition is worth a warning. An idle desktop has a load average of some tenths, and
# all cores together do not reach the highest clock of one alone.
BUSY_CORES = 0.25
STOLEN = 0.01
OTHERS = 0.05  # of the cores' time
SLOW_CLOCK = 0.6

Item = TypeVar("Item")


@dataclass(frozen=True)
class TextTable:
    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    """As many cells each as there are columns; "" where a figure is not known."""
    numbers: bool = True
    """Whether all columns but the first hold numbers."""


def as_table(
    title: str, items: Iterable[Item], columns: Sequence[tuple[str, Callable[[Item], str]]]
) -> TextTable | None:
    """A row for each item, without the columns that are empty in all; None where there is no item."""
    rows = [[cell(item) for _, cell in columns] for item in items]
    told = [n for n in range(len(columns)) if any(row[n] for row in rows)]
    if not rows:
        return None
    return TextTable(title, tuple(columns[n][0] for n in told), [tuple(row[n] for n in told) for row in rows])


def facts(title: str, pairs: Iterable[tuple[str, str | None]]) -> TextTable:
    """Names and values, without those that are None."""
    return TextTable(title, ("what", "value"), [(name, value) for name, value in pairs if value is not None], False)


def number(value: float | None, beside: float | None = None) -> str:
    """In the three digits that a figure of this size is told with, or in those of the one that it stands beside."""
    if value is None:
        return ""
    size = value if beside is None else beside
    return f"{value:,.{0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3}f}"


def percent(share: float | None) -> str:
    return "" if share is None else f"{share:.{0 if share >= 0.1 else 1}%}"


def span(spread: Spread) -> str:
    """Nothing for a single run, which has none."""
    if spread.runs == 1:
        return ""
    return f"{number(spread.least, spread.median)}-{number(spread.most, spread.median)}"


def median_and_span(spread: Spread) -> str:
    median, least_most = number(spread.median), span(spread)
    return f"{median} ({least_most})" if least_most else median


def heading(figures: Figures) -> list[str]:
    """What was measured, on what and how, in three lines."""
    model, machine, setup = figures.model, figures.machine, figures.setup
    weights = "random weights, " if model.random_weights else ""
    recipe = f", {model.recipe}" if model.recipe else ""
    where = [machine.processor] if machine.device == "CPU" else [machine.device, machine.processor]
    where += [f"{machine.cores} cores"]
    where += [f"{machine.kernels} kernels"] if machine.kernels else []
    where += [f"{setup.threads} threads"] if setup.threads else []
    size = f"{size_text(model.bytes)}, {model.bits_per_weight:.2f} bits per weight"
    how = [f"context {setup.context:,}", f"keys and values in {setup.kv_bits} bits"]
    how += [] if setup.expert_slots is None else [f"{_slots(figures)} experts in memory"]
    how += [f"median of {setup.repeat} runs" if setup.repeat > 1 else "one run of each"]
    return [f"{model.name}{recipe} ({weights}{size})", ", ".join(where), ", ".join(how)]


def _slots(figures: Figures) -> str:
    slots = figures.setup.expert_slots
    return "all" if slots is None else f"{slots:,} of {figures.model.layers * figures.model.experts:,}"


def speeds(figures: Figures) -> TextTable | None:
    return as_table(
        "Speed",
        figures.speeds,
        [
            ("what", lambda speed: speed.name),
            ("tokens/s", lambda speed: number(speed.tokens_per_second.median)),
            ("least-most", lambda speed: span(speed.tokens_per_second)),
            ("limit", lambda speed: number(speed.limit)),
            ("of limit", lambda speed: percent(speed.share)),
        ],
    )


def tokens(figures: Figures) -> TextTable | None:
    """Of those speeds that say something of single tokens."""

    def milliseconds(part: str) -> Callable[[Speed], str]:
        return lambda speed: number((seconds := getattr(speed.token_seconds, part, None)) and 1e3 * seconds)

    return as_table(
        "Each token",
        [speed for speed in figures.speeds if speed.token_seconds or speed.joules_per_token is not None],
        [
            ("what", lambda speed: speed.name),
            ("ms p50", milliseconds("p50")),
            ("p90", milliseconds("p90")),
            ("p99", milliseconds("p99")),
            ("most", milliseconds("most")),
            ("J/token", lambda speed: number(speed.joules_per_token)),
        ],
    )


def limit_line(figures: Figures) -> list[str]:
    """Where the limits of the speeds come from, in a line, if they are known."""
    rates = [speed.rates for speed in figures.speeds if speed.limit]
    if not rates:
        return []

    def told(part: str, unit: float) -> str:
        rate = Spread.of([getattr(each, part) / unit for each in rates])
        return span(rate) or number(rate.median)

    operations = f"{told('matrix', 1e12)} Top/s in BF16"
    if figures.machine.device == "CPU":
        operations = f"{told('matrix', 1e12)} Top/s in 8-bit products, {told('vector', 1e12)} in FP32"
    return [f"limit: {told('bandwidth', 1e9)} GB/s read, {operations}, measured beside each"]


def limits(figures: Figures) -> TextTable | None:
    """The same of each speed, and its work."""

    def billions(value: float | None) -> str:
        return "" if value is None else number(value / 1e9)

    return as_table(
        "Limit: the work of one run, and what the machine gave beside it",
        figures.speeds,
        [
            ("what", lambda speed: speed.name),
            ("GB to read", lambda speed: billions(speed.work.bytes)),
            ("GB/s", lambda speed: billions(speed.rates.bandwidth)),
            ("matrix Gop", lambda speed: billions(speed.work.matrix_operations)),
            ("Gop/s", lambda speed: billions(speed.rates.matrix)),
            ("vector Gop", lambda speed: billions(speed.work.vector_operations)),
            ("Gop/s", lambda speed: billions(speed.rates.vector)),
        ],
    )


def experts(figures: Figures) -> TextTable | None:
    """Of those speeds at which experts were paged."""
    return as_table(
        "Experts, paged",
        [(speed.name, speed.experts) for speed in figures.speeds if speed.experts],
        [
            ("what", lambda paged: paged[0]),
            ("in memory", lambda paged: f"{paged[1].hit_rate:.1%}"),
            ("read", lambda paged: size_text(paged[1].bytes_read)),
            ("waiting s", lambda paged: number(paged[1].stall_seconds)),
        ],
    )


def start(figures: Figures) -> TextTable | None:
    if not figures.start:
        return None
    return as_table(
        f"Start, with a prompt of {figures.start.prompt:,} tokens",
        [
            ("load", figures.start.load_seconds),
            ("new process to first token", figures.start.cold_seconds),
            ("loaded before, to first token", figures.start.warm_seconds),
        ],
        [
            ("what", lambda part: part[0]),
            ("seconds", lambda part: number(part[1].median)),
            ("least-most", lambda part: span(part[1])),
        ],
    )


def memory(figures: Figures) -> TextTable:
    told = figures.memory
    parts = {
        "anonymous": told.anonymous,
        "mapped": told.mapped,
        "peak": told.peak,
        "planned": told.planned,
    }
    parts |= {} if told.gpu is None else {"on the GPU": told.gpu}
    rows = [(name, "not known" if count is None else size_text(count)) for name, count in parts.items()]
    return TextTable("Memory", ("what", "bytes"), rows)


def profile(figures: Figures) -> TextTable | None:
    if not figures.profile:
        return None
    stages, bandwidth, step = figures.profile.stages, figures.profile.bandwidth, figures.profile.seconds

    def rate(stage: Stage) -> float | None:
        return stage.bytes / stage.seconds if stage.bytes and stage.seconds else None

    whole = Stage("in all", step, sum(stage.bytes for stage in stages))
    return as_table(
        f"One step of decoding behind {figures.profile.depth:,} tokens",
        [*stages, whole] if stages else [],
        [
            ("stage", lambda stage: stage.name),
            ("ms", lambda stage: number(1e3 * stage.seconds)),
            ("of step", lambda stage: percent(stage.seconds / step if step else None)),
            ("bytes", lambda stage: size_text(stage.bytes) if stage.bytes else ""),
            ("GB/s", lambda stage: number((per_second := rate(stage)) and per_second / 1e9)),
            (
                "of bandwidth",
                lambda stage: percent((per_second := rate(stage)) and bandwidth and per_second / bandwidth),
            ),
        ],
    )


def machine(figures: Figures) -> TextTable:
    told, conditions = figures.machine, figures.conditions
    return facts(
        "Machine",
        [
            ("system", told.system),
            ("processor", f"{told.processor}, {told.cores} cores"),
            ("memory", size_text(told.memory)),
            ("device", told.device),
            ("kernels", told.kernels or "none"),
            *told.versions.items(),
            ("commit", told.commit),
            ("load average", None if conditions.load_average is None else f"{conditions.load_average:.2f}"),
            ("other programs", None if conditions.others is None else f"{conditions.others:.1%} of the cores"),
            ("stolen by the host", None if conditions.stolen is None else f"{conditions.stolen:.1%}"),
            ("throttled", None if conditions.throttled is None else f"{conditions.throttled} times"),
            ("clock", None if conditions.clock is None else f"{conditions.clock:.0%} of the highest"),
            ("power", conditions.power),
            ("date", figures.date),
        ],
    )


def settings(figures: Figures) -> TextTable:
    model, setup = figures.model, figures.setup
    return facts(
        "Settings",
        [
            ("model", f"{model.name}{', random weights' if model.random_weights else ''}"),
            ("recipe", model.recipe),
            ("size", f"{size_text(model.bytes)}, {model.bits_per_weight:.2f} bits per weight"),
            ("shape", f"{model.layers} layers of {model.experts} experts, {model.experts_per_token} for a token"),
            ("runs of each", str(setup.repeat)),
            ("threads", None if setup.threads is None else str(setup.threads)),
            ("context", f"{setup.context:,} tokens"),
            ("keys and values", f"{setup.kv_bits} bits"),
            ("prefill", f"{setup.prefill_chunk:,} tokens at a time"),
            ("experts in memory", _slots(figures)),
            ("experts on the CPU", f"of {setup.cpu_expert_layers} layers" if setup.cpu_expert_layers else None),
            ("energy", setup.energy),
            ("prompts", setup.prompts),
        ],
    )


def warnings(figures: Figures) -> list[str]:
    """A line for each sign that the figures are not those of an idle machine at its full speed, or not all there."""
    told, cores = figures.conditions, figures.machine.cores
    lines = []
    if (told.others or 0) > OTHERS:
        lines.append(f"disturbed: other programs took {told.others:.0%} of the cores' time meanwhile")
    elif told.others is None and (told.load_average or 0) > BUSY_CORES * cores:
        lines.append(f"disturbed: a load average of {told.load_average:.2f} on {cores} cores, before it began")
    if (told.stolen or 0) > STOLEN:
        lines.append(f"disturbed: the host gave {told.stolen:.1%} of these cores' time to others")
    if told.throttled:
        lines.append(f"disturbed: cores were slowed {told.throttled} times because they were hot")
    if told.clock is not None and told.clock < SLOW_CLOCK:
        lines.append(f"disturbed: at the end the cores' clock was at {told.clock:.0%} of its highest")
    if told.gpu_slowed:
        lines.append("disturbed: at the end the GPU was slowed, because of heat or of its power supply")
    if told.power == "battery":
        lines.append("disturbed: on battery")
    if above := [speed.name for speed in figures.speeds if (speed.share or 0) > 1]:
        lines.append(
            f"above its limit: {', '.join(above)}. What the machine gives swings, and what stays in a cache is not read"
            " again"
        )
    if not figures.finished:
        lines.append("broken off: what is missing here was not measured")
    return lines
