"""What is shown of a benchmark's results: a heading, tables of text, and warnings.

Which values, in which order, with how many digits; how it looks, in a terminal or in Markdown, is left to `report` and
`formats`. Text that came from a model's folder is in it as it was found: who shows it has to escape it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ..memory.system import size_text
from ..model.expert_pool import PoolStats
from .results import Results, Speed, Spread, Stage

# Above (the clock: below) these, a condition is worth a warning. An idle desktop has a load average of some tenths, and
# all cores together do not reach the highest clock of one alone.
BUSY_CORES = 0.25
STOLEN = 0.01
OTHERS = 0.05  # of the cores' time
SLOW_CLOCK = 0.6

BYTES = {"memory", "bytes", "workspace", "allocations"}  # facts that are numbers of bytes

Item = TypeVar("Item")


@dataclass(frozen=True)
class TextTable:
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    """Rows of as many cells as there are columns; "" where a value is not known. A table without rows is not shown."""
    numbers: bool = True
    """Whether all columns but the first hold numbers."""
    detail: bool = False
    """Whether it is more than a terminal shows."""
    note: str = ""
    """A line that explains it."""


@dataclass(frozen=True)
class Report:
    heading: Sequence[str]
    tables: Sequence[TextTable]
    warnings: Sequence[str]
    command: str = ""
    """The command that would give the same, where it is known."""


def report(results: Results) -> Report:
    made = machine, model, settings, speeds, tokens, limits, experts, start, memory, profile
    return Report(heading(results), [make(results) for make in made], warnings(results), results.command)


def as_table(
    title: str,
    items: Mapping[str, Item],
    columns: Mapping[str, Callable[[Item], str]],
    *,
    first: str = "what",
    detail: bool = False,
    note: str = "",
) -> TextTable:
    """A row for each item, after its name, in a column that is called `first`; without the columns that are empty in
    all, and without the rows that are."""
    found = {name: [cell(item) for cell in columns.values()] for name, item in items.items()}
    rows = [[name, *cells] for name, cells in found.items() if any(cells)]
    known = [n for n in range(1 + len(columns)) if any(row[n] for row in rows)]
    names = [first, *columns]
    return TextTable(title, [names[n] for n in known], [[row[n] for n in known] for row in rows], True, detail, note)


def number(value: float | None, beside: float | None = None) -> str:
    """With three digits, or with the decimals that the number beside it has."""
    if value is None:
        return ""
    size = value if beside is None else beside
    return f"{value:,.{0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3}f}"


def percent(share: float | None) -> str:
    return "" if share is None else f"{share:.{0 if share >= 0.1 else 1}%}"


def span(spread: Spread) -> str:
    """The least and the most; nothing for a single run, which has no spread."""
    if spread.runs == 1:
        return ""
    return f"{number(spread.least, spread.median)}-{number(spread.most, spread.median)}"


def median_and_span(spread: Spread) -> str:
    median, least_most = number(spread.median), span(spread)
    return f"{median} ({least_most})" if least_most else median


def heading(results: Results) -> list[str]:
    """Three lines: the model, the machine, the settings."""
    model, machine, setup = results.model, results.machine, results.setup
    weights = "random weights, " if model.random_weights else ""
    recipe = f", {model.recipe}" if model.recipe else ""
    where = [machine.processor] if machine.device == "CPU" else [machine.device, machine.processor]
    where += [f"{machine.cores} cores"]
    where += [f"{machine.kernels} kernels"] if machine.kernels else []
    where += [f"{setup.threads} threads"] if setup.threads else []
    size = f"{size_text(model.bytes)}, {model.bits_per_weight:.2f} bits per weight"
    how = [f"context {setup.context:,}", f"{setup.kv_bits}-bit KV cache"]
    how += [] if setup.expert_slots is None else [f"{_slots(results)} experts in memory"]
    how += [f"median of {setup.repeat} runs" if setup.repeat > 1 else "one run of each"]
    return [f"{model.name}{recipe} ({weights}{size})", ", ".join(where), ", ".join(how)]


def _slots(results: Results) -> str:
    slots = results.setup.expert_slots
    return "all" if slots is None else f"{slots:,} of {results.model.layers * results.model.experts:,}"


def speeds(results: Results) -> TextTable:
    columns: dict[str, Callable[[Speed], str]] = {
        "tokens/s": lambda speed: number(speed.tokens_per_second.median),
        "least-most": lambda speed: span(speed.tokens_per_second),
        "limit": lambda speed: number(speed.limit),
        "of limit": lambda speed: percent(speed.share),
    }
    return as_table("Speed", _by_name(results), columns, note=_limit_note(results))


def _by_name(results: Results) -> dict[str, Speed]:
    return {speed.name: speed for speed in results.speeds}


def tokens(results: Results) -> TextTable:
    """What is known of single tokens."""

    def milliseconds(part: str) -> Callable[[Speed], str]:
        return lambda speed: number((seconds := getattr(speed.token_seconds, part, None)) and 1e3 * seconds)

    columns = {"ms p50": milliseconds("p50")} | {part: milliseconds(part) for part in ("p90", "p99", "most")}
    columns["J/token"] = lambda speed: number(speed.joules_per_token)
    return as_table("Each token", _by_name(results), columns)


def _limit_note(results: Results) -> str:
    """Where the limits of the speeds come from, if they are known."""
    rates = [speed.rates for speed in results.speeds if speed.limit]
    if not rates:
        return ""

    def rate(part: str, unit: float) -> str:
        spread = Spread.of([getattr(each, part) / unit for each in rates])
        return span(spread) or number(spread.median)

    operations = f"{rate('matrix', 1e12)} Top/s in BF16"
    if results.machine.device == "CPU":
        operations = f"{rate('matrix', 1e12)} Top/s in 8-bit products, {rate('vector', 1e12)} in FP32"
    return f"limit: {rate('bandwidth', 1e9)} GB/s read, {operations}, measured beside each"


def limits(results: Results) -> TextTable:
    """The rates that limit each speed, and the work of one run."""

    def billions(value: float | None) -> str:
        return number(value and value / 1e9)

    columns: dict[str, Callable[[Speed], str]] = {
        "GB to read": lambda speed: billions(speed.work.bytes),
        "GB/s": lambda speed: billions(speed.rates.bandwidth),
        "matrix Gop": lambda speed: billions(speed.work.matrix_operations),
        "matrix Gop/s": lambda speed: billions(speed.rates.matrix),
        "vector Gop": lambda speed: billions(speed.work.vector_operations),
        "vector Gop/s": lambda speed: billions(speed.rates.vector),
    }
    title = "Limit: the work of one run, and the machine's rates beside it"
    return as_table(title, _by_name(results), columns, detail=True)


def experts(results: Results) -> TextTable:
    """The speeds at which experts were paged."""
    columns: dict[str, Callable[[PoolStats], str]] = {
        "in memory": lambda stats: f"{stats.hit_rate:.1%}",
        "read": lambda stats: size_text(stats.bytes_read),
        "waiting s": lambda stats: number(stats.stall_seconds),
    }
    paged = {speed.name: speed.experts for speed in results.speeds if speed.experts}
    return as_table("Experts, paged", paged, columns)


def start(results: Results) -> TextTable:
    if not (found := results.start):
        return TextTable("Start", (), ())
    parts = {
        "load": found.load_seconds,
        "new process to first token": found.cold_seconds,
        "loaded before, to first token": found.warm_seconds,
    }
    columns = {"seconds": lambda spread: number(spread.median), "least-most": span}
    return as_table(f"Start, with a prompt of {found.prompt:,} tokens", parts, columns)


def memory(results: Results) -> TextTable:
    used = results.memory
    parts = [("anonymous", used.anonymous), ("mapped", used.mapped), ("peak", used.peak), ("planned", used.planned)]
    parts += [] if used.gpu is None else [("on the GPU", used.gpu)]
    rows = [(name, "not known" if count is None else size_text(count)) for name, count in parts]
    return TextTable("Memory", ("what", "bytes"), rows)


def profile(results: Results) -> TextTable:
    if not (found := results.profile):
        return TextTable("Profile", (), ())
    bandwidth, step = found.bandwidth, found.seconds

    def rate(stage: Stage) -> float | None:
        return stage.bytes / stage.seconds if stage.bytes and stage.seconds else None

    columns: dict[str, Callable[[Stage], str]] = {
        "ms": lambda stage: number(1e3 * stage.seconds),
        "of step": lambda stage: percent(stage.seconds / step if step else None),
        "bytes": lambda stage: size_text(stage.bytes) if stage.bytes else "",
        "GB/s": lambda stage: number((speed := rate(stage)) and speed / 1e9),
        "of bandwidth": lambda stage: percent((speed := rate(stage)) and bandwidth and speed / bandwidth),
    }
    stages = [*found.stages, Stage("in all", step, sum(stage.bytes for stage in found.stages))]
    title = f"One step of decoding after {found.depth:,} tokens"
    return as_table(title, {stage.name: stage for stage in stages}, columns, first="stage")


def machine(results: Results) -> TextTable:
    described = vars(results.machine) | {"versions": None} | results.machine.versions
    return _facts("Machine", described | vars(results.conditions) | {"date": results.date})


def model(results: Results) -> TextTable:
    return _facts("Model", vars(results.model))


def settings(results: Results) -> TextTable:
    return _facts("Settings", vars(results.setup))


def _facts(title: str, values: Mapping[str, Any]) -> TextTable:
    """Values by the names that they have in the JSON, without those that are None."""
    known = [(name.replace("_", " "), _fact(name, value)) for name, value in values.items() if value is not None]
    return TextTable(title, ("what", "value"), known, numbers=False, detail=True)


def _fact(name: str, value: Any) -> str:
    if name in BYTES:
        return size_text(value)
    return number(value) if isinstance(value, float) else fact_text(value)


def fact_text(value: int | str | None) -> str:
    return "not set" if value is None else f"{value:,}" if type(value) is int else str(value)


def warnings(results: Results) -> list[str]:
    """A line for each sign that the machine was not idle or not at its full speed, or that results are missing."""
    seen, cores = results.conditions, results.machine.cores
    is_busy = seen.others is None and (seen.load_average or 0) > BUSY_CORES * cores
    signs = {
        "other programs took {0.others:.0%} of the cores' time meanwhile": (seen.others or 0) > OTHERS,
        "a load average of {0.load_average:.2f} on {1} cores, before it began": is_busy,
        "the host gave {0.stolen:.1%} of these cores' time to others": (seen.stolen or 0) > STOLEN,
        "cores were slowed {0.throttled} times because they were hot": seen.throttled,
        "at the end the cores' clock was at {0.clock:.0%} of its highest": (seen.clock or 1) < SLOW_CLOCK,
        "at the end the GPU was slowed, because of heat or of its power supply": seen.gpu_slowed,
        "on battery": seen.power == "battery",
    }
    lines = [f"disturbed: {sign.format(seen, cores)}" for sign, is_seen in signs.items() if is_seen]
    if above := [speed.name for speed in results.speeds if (speed.share or 0) > 1]:
        lines.append(
            f"above its limit: {', '.join(above)}. The machine's rates swing, and what stays in a cache is not read"
            " again"
        )
    if not results.finished:
        lines.append("interrupted: what is missing here was not measured")
    return lines
