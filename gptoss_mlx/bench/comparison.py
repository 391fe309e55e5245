"""gptoss-mlx beside another runtime: both run by turns in one session, and the ratio of each pair of runs counts.

Each run is a process of its own, one at a time, so that only one model is in memory; who goes first alternates, so that
a machine that gets slower or faster favours nobody. How ours measures is `measure`'s affair, and how another runtime is
asked `peers`'.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, NamedTuple

from ..errors import MAX_LENGTH, GptOssError
from ..process import Output, Stop, collect, signal_group
from ..untrusted import MAX_JSON, os_error_text, parse_json
from . import tables
from .baseline import results_of
from .peers import Peer, Reading, Run, listed, our_facts
from .results import Grid, Point, Results, Spread
from .tables import Report, TextTable, as_table, median_and_span, number

OURS = "gptoss-mlx"
TIME_LIMIT = 1800.0  # seconds that one process may take
# No connections; a config file for `bench`, with `against` say, is not for the runs of a comparison; and what is in the
# current folder is no module of theirs.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "GPTOSS_MLX_CONFIG": os.devnull,
    "PYTHONSAFEPATH": "1",
}


@dataclass(frozen=True)
class PairedSpeed:
    """Tokens per second of both sides at one point, pair by pair."""

    point: Point
    ours: list[float]
    theirs: list[float]

    @property
    def ratios(self) -> list[float]:
        """Ours over theirs."""
        return [ours / theirs for ours, theirs in zip(self.ours, self.theirs, strict=True)]

    @property
    def won(self) -> int:
        """The pairs in which ours was faster."""
        return sum(ratio > 1 for ratio in self.ratios)

    def as_dict(self) -> dict[str, Any]:
        sides = {"ours_tokens_per_second": self.ours, "theirs_tokens_per_second": self.theirs}
        ratio = {"ratios": self.ratios, "ratio": asdict(Spread.of(self.ratios)), "won": self.won}
        return {"name": self.point.name} | self.point._asdict() | sides | ratio


class FactDifference(NamedTuple):
    what: str
    ours: str
    theirs: str


@dataclass(frozen=True)
class Comparison:
    """Text in it is as it was found: who shows it has to escape it."""

    peer: str
    version: str
    """The peer's version."""
    pairs_asked: int
    differs: list[FactDifference]
    speeds: list[PairedSpeed]
    ours: Results
    """Results of our last run, but for the load average, which is that before the first, and `finished`, which is that
    of the comparison."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        parts = {"speeds": [speed.as_dict() for speed in self.speeds], "ours": self.ours.as_dict()}
        return asdict(self) | {"differs": [each._asdict() for each in self.differs]} | parts


def compare(
    peer: Peer,
    ours_command: Sequence[str],
    rounds: int,
    on_progress: Callable[[str], None] = lambda line: None,
    time_limit: float = TIME_LIMIT,
) -> Iterator[Comparison]:
    """Yield what is known after each of `rounds` pairs of runs.

    `ours_command` prints `Results.as_dict()` as JSON once --prompt, --generate and --depth are added to it.
    `on_progress` gets a line on what runs, and on how long a pair took. No process may take more than `time_limit`
    seconds. Raises GptOssError; a KeyboardInterrupt ends the process that runs.
    """
    ours: list[Results] = []
    theirs: list[Reading] = []
    run = partial(_output, time_limit=time_limit)
    turns: list[tuple[str, Callable[[], None]]] = [
        (OURS, lambda: ours.append(_measure_ours(run, ours_command, peer.ours))),
        (peer.name, lambda: theirs.append(peer.measure(run))),
    ]
    for pair in range(1, rounds + 1):
        started = time.monotonic()
        for name, measure in turns:
            on_progress(f"pair {pair} of {rounds}: {name}")
            measure()
        turns.reverse()
        if left := rounds - pair:
            on_progress(f"one pair took {time.monotonic() - started:.0f} s, {left} to go")
        yield _comparison(peer, rounds, ours, theirs)


def report(comparison: Comparison) -> Report:
    ours, peer, pairs, asked = comparison.ours, comparison.peer, len(comparison.speeds[0].ours), comparison.pairs_asked
    runs = f"{pairs} of {asked} pairs of runs" if pairs < asked else f"pairs of runs: {pairs}"
    columns: dict[str, Callable[[PairedSpeed], str]] = {
        OURS: lambda speed: number(Spread.of(speed.ours).median),
        peer: lambda speed: number(Spread.of(speed.theirs).median),
        "ratio": lambda speed: median_and_span(Spread.of(speed.ratios)),
        "won": lambda speed: f"{speed.won} of {pairs}",
    }
    speeds = as_table(
        f"{ours.model.name}, tokens/s: {OURS} and {peer} {comparison.version}, {runs}",
        {speed.point.name: speed for speed in comparison.speeds},
        columns,
        note=f"ratio: median (least-most); won: pairs in which {OURS} was faster",
    )
    differs = TextTable("What differs", ("what", OURS, peer), comparison.differs, numbers=False)
    return Report((), (tables.machine(ours), speeds, differs), tables.warnings(ours))


def _measure_ours(run: Run, command: Sequence[str], sizes: Grid) -> Results:
    counts = [(f"--{name}", listed(counts)) for name, counts in asdict(sizes).items()]
    output = run(OURS, [*command, *(word for pair in counts for word in pair)])
    try:
        return results_of(parse_json(output))
    except ValueError as error:
        raise GptOssError(f"cannot read what our own run printed: {error}") from None


def _comparison(peer: Peer, rounds: int, ours: list[Results], theirs: list[Reading]) -> Comparison:
    our_speeds = [{each.point: each.tokens_per_second.median for each in results.speeds} for results in ours]
    for name, speeds in ((OURS, our_speeds[-1]), (peer.name, theirs[-1].speeds)):
        if missing := [point for point in peer.points if point not in speeds]:
            raise GptOssError(f"{name} reported no speed for {missing[0].name}")
    conditions = replace(ours[-1].conditions, load_average=ours[0].conditions.load_average)
    facts, their_facts = our_facts(ours[-1]), theirs[-1].facts
    return Comparison(
        peer=peer.name,
        version=theirs[-1].version,
        pairs_asked=rounds,
        differs=[FactDifference(name, facts[name], fact) for name, fact in their_facts.items() if fact != facts[name]],
        speeds=[
            PairedSpeed(point, [each[point] for each in our_speeds], [each.speeds[point] for each in theirs])
            for point in peer.points
        ],
        ours=replace(ours[-1], conditions=conditions, finished=len(ours) == rounds),
    )


def _output(name: str, words: list[str], time_limit: float) -> bytes:
    """What a program prints until it ends, at most MAX_JSON bytes; its process group is gone afterwards. Raises
    GptOssError."""
    output, errors = Output(2 * MAX_JSON), Output(2 * MAX_LENGTH)
    try:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | ENVIRONMENT,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        raise GptOssError(f"cannot run {words[0]}: {os_error_text(error)}") from None
    with process:
        try:
            stop = collect(process, [output, errors], max_bytes=MAX_JSON, seconds=time_limit)
        finally:
            signal_group(process, signal.SIGKILL)
    if stop is Stop.TOO_MUCH:
        raise GptOssError(f"{name} was stopped: it printed more than {MAX_JSON:,} bytes")
    if stop:
        sizes = "give smaller ones with --prompt, --generate and --depth"
        raise GptOssError(f"{name} was stopped: one run took more than {time_limit:g} s for these sizes; {sizes}")
    if process.returncode:
        last_line = _last_line(errors.text()) if process.returncode > 0 else ""
        raise GptOssError(f"{name} failed: {last_line or _ending(process.returncode)}")
    return bytes(output.kept)


def _last_line(errors: str) -> str:
    lines = (line.strip() for line in reversed(errors.split("\n")))
    return next((line.removeprefix("error: ") for line in lines if line), "")


def _ending(returncode: int) -> str:
    """How a program ended that was stopped by a signal, or said nothing."""
    if returncode == -signal.SIGKILL:
        return "the system killed it, perhaps because memory was full"
    return signal.strsignal(-returncode) or f"signal {-returncode}" if returncode < 0 else f"exit status {returncode}"
