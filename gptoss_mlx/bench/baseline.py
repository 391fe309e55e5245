"""The figures of an earlier run, from its JSON, and what has changed since on the same machine with the same model.

Versions and commits may differ: what they have changed is the question. The verdict is on tokens per second alone; the
bandwidth that the memory gave in both runs is told beside it, because on a shared machine it swings.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from ..errors import GptOssError
from ..untrusted import read_json
from . import tables
from .figures import FORMAT, Figures, Machine, ModelFacts, Point, Setup, Speed, Spread
from .report import print_lines, print_text_table
from .tables import TextTable

FAIL_BELOW = 0.95
MOST = 1e24  # bytes, operations or seconds: nothing that was measured is more
SETTINGS = {
    "context": "context",
    "kv_bits": "bits of keys and values",
    "prefill_chunk": "tokens of a prefill chunk",
    "expert_slots": "limit of experts in memory",
    "cpu_expert_layers": "layers with experts on the CPU",
    "prompts": "prompts",
}


@dataclass(frozen=True)
class Change:
    """One speed, then and now; None where it was measured only once."""

    name: str
    earlier: Spread | None
    present: Spread | None
    bandwidth_ratio: float | None
    """Of what the memory gave: present over earlier. None where it is not known."""
    below: bool
    """Whether the ratio is below what was asked for."""

    @property
    def ratio(self) -> float | None:
        """Of the tokens per second: present over earlier."""
        return self.present.median / self.earlier.median if self.earlier and self.present else None


def read_baseline(path: Path) -> Figures:
    """The figures that `Figures.as_dict` wrote as JSON. Raises GptOssError for anything else."""
    data = read_json(path)
    if not isinstance(data, dict) or "format" not in data:
        raise GptOssError(f"{path} is no baseline: write one with `gptoss-mlx bench --format json`")
    if data["format"] != FORMAT:
        raise GptOssError(
            f"{path} has the format {data['format']!r}, and this version reads {FORMAT}: measure it again"
        )
    try:
        return figures_of(data)
    except ValueError as error:
        raise GptOssError(f"{path} is no baseline: {error}") from None


def figures_of(data: Any) -> Figures:
    """The same of JSON that was parsed, of this format. Raises ValueError."""
    figures = _read(Figures, data, "")
    for index, speed in enumerate(figures.speeds):
        if not 0 < speed.tokens_per_second.least <= speed.tokens_per_second.median <= speed.tokens_per_second.most:
            raise _Damaged(f"speeds[{index}].tokens_per_second is no spread")
    return figures


def check_comparable(
    machine: Machine, model: ModelFacts, setup: Setup, points: Sequence[Point], baseline: Figures
) -> None:
    """Before a measurement of these points: raises GptOssError where the baseline is of another machine or model, or
    has none of them."""
    here, there = _identity(machine, model, setup), _identity(baseline.machine, baseline.model, baseline.setup)
    names = [name for name in here if here[name] != there[name]]
    if differing := [f"{name} {_told(there[name])}, and this is {_told(here[name])}" for name in names]:
        raise GptOssError(
            f"the baseline was measured on {'; '.join(differing)}. A baseline is of the same machine and model"
        )
    wanted, known = ([each.name for each in some] for some in (points, baseline.speeds))
    if not set(wanted) & set(known):
        raise GptOssError(
            f"nothing to compare: the baseline has {', '.join(known) or 'nothing'}, and this run {', '.join(wanted)}"
        )


def _identity(machine: Machine, model: ModelFacts, setup: Setup) -> dict[str, Any]:
    return {
        "processor": machine.processor,
        "cores": machine.cores,
        "device": machine.device,
        "kernels": machine.kernels,
        "threads": setup.threads,
        "model": model.name,
        "recipe": model.recipe,
        "random weights": model.random_weights,
        "layers": model.layers,
        "bytes": model.bytes,
    }


def setting_differences(setup: Setup, earlier: Setup) -> list[str]:
    """A line for each setting that is not as it was, and may be why a speed is not."""
    lines = []
    for name, words in SETTINGS.items():
        then, now = getattr(earlier, name), getattr(setup, name)
        if then != now:
            lines.append(f"{words}: {_told(then)} then, {_told(now)} now")
    return lines


def _told(value: int | str | None) -> str:
    return "not set" if value is None else f"{value:,}" if type(value) is int else str(value)


def compare_with_baseline(figures: Figures, baseline: Figures, fail_below: float = FAIL_BELOW) -> list[Change]:
    """What has become of each speed: those of now first, then those that only the baseline has.

    For figures that `check_comparable` let through.
    """
    then, now = ({speed.name: speed for speed in each.speeds} for each in (baseline, figures))
    return [_change(name, then.get(name), now.get(name), fail_below) for name in {**now, **then}]


def _change(name: str, earlier: Speed | None, present: Speed | None, fail_below: float) -> Change:
    if not earlier or not present:
        spreads = [speed and speed.tokens_per_second for speed in (earlier, present)]
        return Change(name, *spreads, bandwidth_ratio=None, below=False)
    before, after = earlier.rates.bandwidth, present.rates.bandwidth
    return Change(
        name,
        earlier.tokens_per_second,
        present.tokens_per_second,
        bandwidth_ratio=after / before if before and after else None,
        below=present.tokens_per_second.median < fail_below * earlier.tokens_per_second.median,
    )


def any_below(changes: Sequence[Change]) -> bool:
    """Whether a speed has fallen so far that the comparison fails."""
    return any(change.below for change in changes)


def changes_table(changes: Sequence[Change]) -> TextTable | None:
    def spread(of: Callable[[Change], Spread | None]) -> Callable[[Change], str]:
        return lambda change: tables.median_and_span(told) if (told := of(change)) else "-"

    def ratio(value: float | None) -> str:
        return "" if value is None else f"{value:.3f}"

    return tables.as_table(
        "Beside the baseline, tokens/s",
        changes,
        [
            ("what", lambda change: change.name),
            ("then", spread(lambda change: change.earlier)),
            ("now", spread(lambda change: change.present)),
            ("ratio", lambda change: ratio(change.ratio)),
            ("memory", lambda change: ratio(change.bandwidth_ratio)),
        ],
    )


def print_changes(changes: Sequence[Change], differences: Sequence[str] = (), console: Console | None = None) -> None:
    """Print the changes to standard output, or to `console`, and a line for each that is below and for each of
    `setting_differences`."""
    console = console or Console()
    if table := changes_table(changes):
        print_text_table(console, table)
    print_lines(console, ["ratio: now over then; memory: the same of its bandwidth, measured beside each"])
    print_lines(
        console, (f"slower: {each.name}, {each.ratio:.3f} of the baseline" for each in changes if each.below), "red"
    )
    print_lines(console, (f"not as then: {difference}" for difference in differences), "yellow")


class _Damaged(ValueError):
    """What is wrong with a baseline, in words."""


def _read(kind: Any, value: Any, where: str) -> Any:
    """`value`, out of JSON, as the type that `kind` says; `where` it is, for messages. Numbers are from 0 to MOST. What
    the types do not name is not looked at. Raises _Damaged."""
    of, parts = typing.get_origin(kind), typing.get_args(kind)
    if is_dataclass(kind):
        return _read_fields(kind, value, where)
    if of in (types.UnionType, typing.Union):
        (inner,) = (part for part in parts if part is not types.NoneType)
        return None if value is None else _read(inner, value, where)
    if of is Literal:
        if value not in parts:
            raise _Damaged(f"{where} is not one of {', '.join(parts)}")
        return value
    if of is list:
        entries = _checked(list, value, where)
        return [_read(parts[0], entry, f"{where}[{index}]") for index, entry in enumerate(entries)]
    if of is tuple:
        entries = _checked(list, value, where)
        if len(entries) != len(parts):
            raise _Damaged(f"{where} has {len(entries)} entries instead of {len(parts)}")
        return tuple(_read(part, entry, where) for part, entry in zip(parts, entries, strict=True))
    if of is dict:
        return {name: _read(parts[1], entry, f"{where}.{name}") for name, entry in _checked(dict, value, where).items()}
    if kind is float:
        value = float(value) if type(value) is int else value
    value = _checked(kind, value, where)
    if kind in (int, float) and not 0 <= value <= MOST:
        raise _Damaged(f"{where} is {'below 0' if value < 0 else 'too large'}")
    return value


def _read_fields(kind: type, value: Any, where: str) -> Any:
    entries, hints = _checked(dict, value, where or "it"), typing.get_type_hints(kind)
    found = {}
    for field in fields(kind):
        path = f"{where}.{field.name}".lstrip(".")
        if field.name not in entries:
            raise _Damaged(f"{path} is missing")
        found[field.name] = _read(hints[field.name], entries[field.name], path)
    return kind(**found)


NAMES = {
    dict: "an object",
    list: "a list",
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
}


def _checked(kind: type, value: Any, where: str) -> Any:
    if type(value) is not kind:
        raise _Damaged(f"{where} is not {NAMES[kind]}")
    return value
