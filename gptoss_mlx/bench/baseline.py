"""The results of an earlier run, from its JSON, and what has changed since on the same machine with the same model.

Versions and commits may differ: what they have changed is the question. The verdict is on tokens per second alone; the
bandwidth of the memory in both runs is shown beside it, because on a shared machine it swings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ..errors import GptOssError
from ..untrusted import read_json
from .results import FORMAT, Machine, ModelFacts, Point, Results, Setup, Speed
from .tables import BYTES, Report, as_table, fact_text, median_and_span

FAIL_BELOW = 0.95
# A run is compared with one that has the same of these.
IDENTITY = "processor cores device kernels threads model recipe random_weights layers bytes"


@dataclass(frozen=True)
class SpeedChange:
    """One speed, then and now; None where it was measured only once."""

    name: str
    earlier: Speed | None
    present: Speed | None
    fail_below: float

    @property
    def ratio(self) -> float | None:
        """Tokens per second, present over earlier."""
        return self._ratio(lambda speed: speed.tokens_per_second.median)

    @property
    def bandwidth_ratio(self) -> float | None:
        """The bandwidth of the memory, present over earlier; None where it is not known."""
        return self._ratio(lambda speed: speed.rates.bandwidth)

    @property
    def below(self) -> bool:
        """Whether the speed has fallen so far that the comparison fails."""
        return self.ratio is not None and self.ratio < self.fail_below

    def _ratio(self, value: Callable[[Speed], float | None]) -> float | None:
        then, now = (speed and value(speed) for speed in (self.earlier, self.present))
        return now / then if now and then else None


def read_baseline(path: Path) -> Results:
    """The results that `Results.as_dict` wrote as JSON. Raises GptOssError for anything else."""
    data = read_json(path)
    if not isinstance(data, dict) or "format" not in data:
        raise GptOssError(f"{path} is no baseline: write one with `gptoss-mlx bench --format json`")
    if data["format"] != FORMAT:
        raise GptOssError(
            f"{path} has the format {data['format']!r}, and this version reads {FORMAT}: measure it again"
        )
    try:
        return results_of(data)
    except ValueError as error:
        raise GptOssError(f"{path} is no baseline: {error}") from None


def results_of(data: Any) -> Results:
    """Results from parsed JSON of this format; what they do not name is passed over. Raises ValueError."""
    return msgspec.convert(data, Results)


def check_comparable(
    machine: Machine, model: ModelFacts, setup: Setup, points: Sequence[Point], baseline: Results
) -> None:
    """Before a measurement of these points: raises GptOssError where the baseline is of another machine or model, or
    has none of the points."""
    here = _facts(machine, model, setup)
    there = _facts(baseline.machine, baseline.model, baseline.setup)
    names = [name for name in IDENTITY.split() if here[name] != there[name]]
    if differing := [f"{_words(name)} {fact_text(there[name])}, and this is {fact_text(here[name])}" for name in names]:
        raise GptOssError(
            f"the baseline was measured on {'; '.join(differing)}. A baseline is of the same machine and model"
        )
    asked, known = [point.name for point in points], [speed.name for speed in baseline.speeds]
    if not set(asked) & set(known):
        raise GptOssError(
            f"nothing to compare: the baseline has {', '.join(known) or 'nothing'}, and this run {', '.join(asked)}"
        )


def _facts(machine: Machine, model: ModelFacts, setup: Setup) -> dict[str, Any]:
    return vars(machine) | vars(model) | vars(setup) | {"model": model.name}


def setting_differences(setup: Setup, earlier: Setup) -> list[str]:
    """A line for each setting that has changed, and may be why a speed has. Sizes follow from the others."""
    pairs = [(_words(name), then, getattr(setup, name)) for name, then in vars(earlier).items() if name not in BYTES]
    return [f"{name}: {fact_text(then)} then, {fact_text(now)} now" for name, then, now in pairs if then != now]


def _words(name: str) -> str:
    return name.replace("_", " ")


def compare_with_baseline(results: Results, baseline: Results, fail_below: float = FAIL_BELOW) -> list[SpeedChange]:
    """How each speed has changed: those of now first, then those that only the baseline has.

    For results that `check_comparable` let through.
    """
    then, now = ({speed.name: speed for speed in each.speeds} for each in (baseline, results))
    return [SpeedChange(name, then.get(name), now.get(name), fail_below) for name in now | then]


def report(changes: Sequence[SpeedChange], setting_differences: Sequence[str] = ()) -> Report:
    """What has changed, with a line for each speed that is below."""

    def spread(speed: Speed | None) -> str:
        return median_and_span(speed.tokens_per_second) if speed else "-"

    def ratio(value: float | None) -> str:
        return "" if value is None else f"{value:.3f}"

    columns: dict[str, Callable[[SpeedChange], str]] = {
        "then": lambda change: spread(change.earlier),
        "now": lambda change: spread(change.present),
        "ratio": lambda change: ratio(change.ratio),
        "memory": lambda change: ratio(change.bandwidth_ratio),
    }
    table = as_table(
        "Beside the baseline, tokens/s",
        {change.name: change for change in changes},
        columns,
        note="ratio: now over then; memory: the same of its bandwidth, measured beside each",
    )
    slower = [f"slower: {each.name}, {each.ratio:.3f} of the baseline" for each in changes if each.below]
    return Report((), [table], slower + [f"changed: {difference}" for difference in setting_differences])
