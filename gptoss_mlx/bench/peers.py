"""Ours beside another runtime: both run by turns in one session, and the ratio of each pair of runs counts.

Each run is a process of its own, one at a time, so that only one model is in memory; who goes first alternates, so that
a machine that gets slower or faster favours nobody. This knows how peers are asked, how to read what they print, and
what differs between them and us. How ours measures is `measure`'s affair, and how a comparison is shown
`peers_report`'s.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Literal, NamedTuple, Protocol

from ..chat.processes import signal_group
from ..errors import LONGEST, GptOssError, printable
from ..foreign import MAX_JSON, is_there, open_regular, parse_json, read_json, reason
from ..memory import size_text
from .figures import FORMAT, Spread

OURS = "gptoss-mlx"
TIME_LIMIT = 1800.0  # seconds that one process may take
POLL = 0.25  # seconds between looks at a process that runs
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}

Run = Callable[[str, list[str]], bytes]
"""From the name of a side, for errors, and a command line to what it printed."""


class Point(NamedTuple):
    """Prefill or decode of some tokens behind `depth` tokens of context."""

    kind: Literal["prefill", "decode"]
    tokens: int
    depth: int

    @property
    def name(self) -> str:
        return f"{self.kind} {self.tokens:,} at {self.depth:,}"


@dataclass(frozen=True)
class Sizes:
    """Tokens to prefill and to decode, each behind each depth."""

    prompt: tuple[int, ...]
    generate: tuple[int, ...]
    depth: tuple[int, ...]

    @property
    def points(self) -> list[Point]:
        kinds = [("prefill", tokens) for tokens in self.prompt] + [("decode", tokens) for tokens in self.generate]
        return [Point(kind, tokens, depth) for depth in self.depth for kind, tokens in kinds]


@dataclass(frozen=True)
class Reading:
    """What one run of one side gave."""

    speeds: dict[Point, float]
    """Tokens per second."""
    version: str
    facts: dict[str, str]
    """What the figures depend on, by name; where it is the same on both sides, the words are."""


class Side(Protocol):
    name: str

    def measure(self, run: Run) -> Reading:
        """Measure all points once. Raises GptOssError."""


class Peer(Side, Protocol):
    points: list[Point]
    """What is compared."""
    ours: Sizes
    """What ours has to measure for that."""
    notes: tuple[str, ...]
    """What differs whatever the machine."""


@dataclass(frozen=True)
class PairedSpeed:
    """Of one point: tokens per second of both sides, pair by pair."""

    point: Point
    ours: list[float]
    theirs: list[float]

    @property
    def ratios(self) -> list[float]:
        """Ours over theirs."""
        return [ours / theirs for ours, theirs in zip(self.ours, self.theirs, strict=True)]

    @property
    def faster(self) -> Literal["ours", "theirs"] | None:
        """Who is, in every pair of several; else None."""
        ratio = Spread.of(self.ratios)
        if ratio.runs > 1 and ratio.least > 1:
            return "ours"
        return "theirs" if ratio.runs > 1 and ratio.most < 1 else None

    def as_dict(self) -> dict[str, Any]:
        sides = {"ours_tokens_per_second": self.ours, "theirs_tokens_per_second": self.theirs}
        ratio = {"ratios": self.ratios, "ratio": asdict(Spread.of(self.ratios)), "faster": self.faster}
        return {"name": self.point.name} | self.point._asdict() | sides | ratio


@dataclass(frozen=True)
class Comparison:
    """All text in it is `printable`."""

    model: str
    machine: str
    version: str
    """Of gptoss-mlx."""
    peer: str
    peer_version: str
    load_average: float
    """Of the minute before the first pair; above 1, other programs had a part of the cores."""
    pairs_asked: int
    differs: list[str]
    speeds: list[PairedSpeed]

    @property
    def pairs(self) -> int:
        return len(self.speeds[0].ours)

    @property
    def finished(self) -> bool:
        """False where the measurement was broken off."""
        return self.pairs == self.pairs_asked

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        rest = {"finished": self.finished, "speeds": [speed.as_dict() for speed in self.speeds]}
        return {"format": FORMAT} | asdict(self) | rest


def compare(
    peer: Peer,
    ours_command: Sequence[str],
    rounds: int,
    on_progress: Callable[[str], None] = lambda line: None,
    time_limit: float = TIME_LIMIT,
) -> Iterator[Comparison]:
    """Yield what is known after each of `rounds` pairs of runs.

    `ours_command` prints `Figures.as_dict()` as JSON once --prompt, --generate and --depth are added to it.
    `on_progress` is told in a line what runs, and how long a pair took. No process may take more than `time_limit`
    seconds. Raises GptOssError; a KeyboardInterrupt ends the process that runs.
    """

    def run(name: str, words: list[str]) -> bytes:
        return _output(name, words, time_limit)

    load_average = os.getloadavg()[0]
    sides: tuple[Side, ...] = (_Ours(ours_command, peer.ours), peer)
    readings: dict[str, list[Reading]] = {side.name: [] for side in sides}
    for pair in range(1, rounds + 1):
        started = time.monotonic()
        for side in sides:
            on_progress(f"pair {pair} of {rounds}: {side.name}")
            readings[side.name].append(_complete(side.name, side.measure(run), peer.points))
        sides = sides[::-1]
        if left := rounds - pair:
            on_progress(f"one pair took {time.monotonic() - started:.0f} s, {left} to go")
        yield _comparison(peer, load_average, rounds, readings[OURS], readings[peer.name])


@dataclass(frozen=True)
class MlxLm:
    """`mlx_lm.benchmark`, on the same folder. It decodes behind its prompt, so that prompts are its depths, whatever
    `sizes` has for depths. Raises GptOssError for a folder that it would not read."""

    folder: Path
    sizes: Sizes
    name: ClassVar = "mlx-lm"
    notes: ClassVar = (
        "depth: mlx-lm decodes behind its prompt only, so ours is measured at that depth",
        "a prefill's time: mlx-lm's includes a step of its own for the last token, and the choice of the next",
        "a decoded token's time: mlx-lm's includes log-probabilities and text, ours the greedy choice alone",
        "decoded tokens: mlx-lm counts the first, whose time is in its prefill; it is asked for one more, and that one"
        " is taken off its figure",
        "positions: mlx-lm rounds the range of YaRN's correction, which the checkpoint does not; the work is the same",
    )

    def __post_init__(self) -> None:
        if not is_there(self.folder / "tokenizer.json"):
            raise GptOssError(f"{self.folder} has no tokenizer.json, and mlx_lm.benchmark does not run without one")
        for path in (self.folder / "config.json", self.folder / "tokenizer_config.json"):
            content = read_json(path) if is_there(path) else {}
            if isinstance(content, dict) and "auto_map" in content:
                raise GptOssError(f"{path} names code (auto_map), and mlx_lm.benchmark would run it: remove auto_map")

    @property
    def points(self) -> list[Point]:
        prompts = Sizes(self.sizes.prompt, (), (0,)).points
        return prompts + [Point("decode", *pair) for pair in product(self.sizes.generate, self.sizes.prompt)]

    @property
    def ours(self) -> Sizes:
        return Sizes(self.sizes.prompt, self.sizes.generate, (0, *self.sizes.prompt))

    def measure(self, run: Run) -> Reading:
        speeds = {}
        for prompt, generate in product(self.sizes.prompt, self.sizes.generate):
            counts = ["-p", str(prompt), "-g", str(generate + 1), "-n", "1"]
            program = [sys.executable, "-m", "mlx_lm.benchmark", "--model", str(self.folder.absolute())]
            prefill, decode = _mlx_lm_speeds(run(self.name, program + counts))
            speeds[Point("prefill", prompt, 0)] = prefill
            speeds[Point("decode", generate, prompt)] = decode * generate / (generate + 1)
        facts = {
            "operations": "MLX's own",
            "threads": "as MLX has it",
            "prefill": "2,048 tokens at a time",
            "keys and values": "16 bits",
            "experts": "all in memory",
        }
        return Reading(speeds, version("mlx-lm"), facts)


@dataclass(frozen=True)
class LlamaCpp:
    """`llama-bench` on a GGUF file, with `threads` of them, or as many as it takes by itself. Raises GptOssError for
    what is no program or no GGUF."""

    llama_bench: Path
    gguf: Path
    sizes: Sizes
    threads: int | None
    name: ClassVar = "llama.cpp"
    notes: ClassVar = (
        "a decoded token's time: ours includes the greedy choice, llama-bench goes on with random tokens",
        "positions: llama.cpp (as of commit 0c1e570) rounds the range of YaRN's correction, which the checkpoint does"
        " not; the work is the same",
    )

    def __post_init__(self) -> None:
        if not is_there(self.llama_bench):
            raise GptOssError(f"there is no {self.llama_bench}: give the path of llama-bench, a program of llama.cpp")
        if not (self.llama_bench.is_file() and os.access(self.llama_bench, os.X_OK)):
            raise GptOssError(f"{self.llama_bench} is no program that can be run: give the path of llama-bench")
        try:
            with open_regular(self.gguf) as file:
                magic = file.read(4)
        except (OSError, ValueError) as error:
            raise GptOssError(f"cannot read {self.gguf}: {reason(error)}") from None
        if magic != b"GGUF":
            raise GptOssError(f"{self.gguf} is no GGUF file: llama.cpp's convert_hf_to_gguf.py makes one")

    @property
    def points(self) -> list[Point]:
        return self.sizes.points

    @property
    def ours(self) -> Sizes:
        return self.sizes

    def measure(self, run: Run) -> Reading:
        words = [str(self.llama_bench.absolute()), "-m", str(self.gguf.absolute()), "-r", "1", "-o", "json"]
        words += ["-p", _listed(self.sizes.prompt), "-n", _listed(self.sizes.generate), "-d", _listed(self.sizes.depth)]
        if self.threads is not None:
            words += ["-t", str(self.threads)]
        output = run(self.name, words)
        try:
            return _llama_bench_reading(parse_json(output))
        except ValueError as error:
            raise GptOssError(f"cannot read what llama-bench printed: {error}") from None


@dataclass(frozen=True)
class _Ours:
    command: Sequence[str]
    sizes: Sizes
    name: ClassVar = OURS

    def measure(self, run: Run) -> Reading:
        sizes = [(f"--{name}", _listed(counts)) for name, counts in asdict(self.sizes).items()]
        output = run(self.name, [*self.command, *(word for pair in sizes for word in pair)])
        try:
            return _our_reading(parse_json(output))
        except ValueError as error:
            raise GptOssError(f"cannot read what our own run printed: {error}") from None


def _our_reading(figures: Any) -> Reading:
    """Of `Figures.as_dict()`. Raises ValueError."""
    if (found := _get(figures, "format", int)) != FORMAT:
        raise ValueError(f"it is of format {found}, not {FORMAT}")
    model, setup, machine = (_get(figures, name, dict) for name in ("model", "setup", "machine"))
    kernels, threads = _get(machine, "kernels", str | None), _get(setup, "threads", int | None)
    slots = _get(setup, "expert_slots", int | None)
    facts = {
        "model": _get(model, "name", str),
        "machine": f"{_get(machine, 'processor', str)}, {_get(machine, 'cores', int)} cores",
        "weights": _weights(_get(model, "bits_per_weight", float), _get(model, "bytes", int)),
        "quantization": _get(model, "recipe", str | None) or "not known",
        "device": _get(machine, "device", str),
        "operations": f"kernels for {kernels}" if kernels else "MLX's own",
        "threads": "as MLX has it" if threads is None else str(threads),
        "prefill": f"{_get(setup, 'prefill_chunk', int):,} tokens at a time",
        "keys and values": f"{_get(setup, 'kv_bits', int)} bits",
        "experts": "all in memory" if slots is None else f"{slots} in memory at a time",
    }
    speeds = {
        Point(*(_get(speed, name, kind) for name, kind in (("kind", str), ("tokens", int), ("depth", int)))): _speed(
            _get(speed, "tokens_per_second", dict), "median"
        )
        for speed in _get(figures, "speeds", list)
    }
    return Reading(speeds, version(OURS), facts)


def _mlx_lm_speeds(output: bytes) -> tuple[float, float]:
    """Prefill and decode, as mlx_lm.benchmark has them. Raises GptOssError."""
    line = re.search(rb"^Trial 1: +prompt_tps=(\d{1,9}\.\d+), generation_tps=(\d{1,9}\.\d+), ", output, re.MULTILINE)
    if not line or not all(speeds := tuple(map(float, line.groups()))):
        raise GptOssError("cannot read what mlx_lm.benchmark printed: it has no line with the speeds of a trial")
    return speeds


def _llama_bench_reading(tests: Any) -> Reading:
    """Of the JSON of llama-bench: a list of tests, each with its figures and all that it was run with. Raises
    ValueError."""
    if not isinstance(tests, list) or not tests:
        raise ValueError("it is no list of tests")
    speeds = {}
    for test in tests:
        prompt, generate, depth = (_get(test, name, int) for name in ("n_prompt", "n_gen", "n_depth"))
        point = Point("prefill", prompt, depth) if prompt else Point("decode", generate, depth)
        speeds[point] = _speed(test, "avg_ts")
    size, batch = _get(test, "model_size", int), _get(test, "n_batch", int)
    keys, values = _get(test, "type_k", str), _get(test, "type_v", str)
    facts = {
        "weights": _weights(8 * size / max(_get(test, "model_n_params", int), 1), size),
        "quantization": _get(test, "model_type", str),
        "device": _get(test, "gpu_info", str) or "CPU",
        "operations": f"ggml's, {_get(test, 'backends', str)}",
        "threads": str(_get(test, "n_threads", int)),
        "prefill": f"{min(batch, _get(test, 'n_ubatch', int)):,} tokens at a time",
        "keys and values": "16 bits" if {keys, values} <= {"f16", "bf16"} else f"{keys} and {values}",
        "experts": "all in memory",
    }
    build = f"build {_get(test, 'build_number', int)}, commit {_get(test, 'build_commit', str)}"
    return Reading(speeds, build, facts)


def _get(entry: Any, name: str, kind: Any) -> Any:
    """A value of a JSON object; whole numbers are also floats. Raises ValueError where it is not of its kind."""
    value = entry.get(name) if isinstance(entry, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float if kind is float else kind):
        raise ValueError(f"{name} is {value!r}")
    return value


def _speed(entry: Any, name: str) -> float:
    speed = float(_get(entry, name, float))
    if speed <= 0:
        raise ValueError(f"{name} is {speed}")
    return speed


def _weights(bits: float, size: int) -> str:
    return f"{bits:.2f} bits each, {size_text(size)}"


def _listed(counts: Sequence[int]) -> str:
    return ",".join(map(str, counts))


def _complete(name: str, reading: Reading, points: list[Point]) -> Reading:
    if missing := [point for point in points if point not in reading.speeds]:
        raise GptOssError(f"{name} gave no figure for {missing[0].name}")
    return reading


def _comparison(peer: Peer, load_average: float, rounds: int, ours: list[Reading], theirs: list[Reading]) -> Comparison:
    ours_facts, theirs_facts = ours[-1].facts, theirs[-1].facts
    facts = [
        f"{name}: {ours_facts[name]} ({OURS}), {fact} ({peer.name})"
        for name, fact in theirs_facts.items()
        if fact != ours_facts[name]
    ]
    return Comparison(
        model=printable(ours_facts["model"]),
        machine=printable(ours_facts["machine"]),
        version=ours[-1].version,
        peer=peer.name,
        peer_version=printable(theirs[-1].version),
        load_average=load_average,
        pairs_asked=rounds,
        differs=[printable(fact) for fact in facts] + list(peer.notes),
        speeds=[
            PairedSpeed(point, [each.speeds[point] for each in ours], [each.speeds[point] for each in theirs])
            for point in peer.points
        ],
    )


def _output(name: str, words: list[str], time_limit: float) -> bytes:
    """What a program prints until it ends; it and all that it started is gone afterwards. Raises GptOssError."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                env=os.environ | OFFLINE,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            raise GptOssError(f"cannot run {words[0]}: {reason(error)}") from None
        try:
            _wait(name, process, (output, errors), time_limit)
        finally:
            signal_group(process, signal.SIGKILL)
            process.wait()
        if process.returncode:
            said = _last_line(errors) if process.returncode > 0 else ""
            raise GptOssError(f"{name} failed: {said or _ending(process.returncode)}")
        output.seek(0)
        return output.read()


def _wait(name: str, process: subprocess.Popen[bytes], written: Sequence[BinaryIO], time_limit: float) -> None:
    """Until the process ends. Raises GptOssError where it takes too long, or has written more than MAX_JSON bytes."""
    deadline = time.monotonic() + time_limit
    while process.returncode is None:
        with suppress(subprocess.TimeoutExpired):
            process.wait(min(POLL, time_limit))
            return
        if any(os.fstat(file.fileno()).st_size > MAX_JSON for file in written):
            raise GptOssError(f"{name} was stopped: it printed more than {MAX_JSON:,} bytes")
        if time.monotonic() > deadline:
            sizes = "give smaller ones with --prompt, --generate and --depth"
            raise GptOssError(f"{name} was stopped: one run took more than {time_limit:g} s for these sizes; {sizes}")


def _last_line(errors: BinaryIO) -> str:
    errors.seek(max(errors.seek(0, os.SEEK_END) - LONGEST, 0))
    lines = errors.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _ending(returncode: int) -> str:
    """How a program ended that was stopped by a signal, or said nothing."""
    if returncode == -signal.SIGKILL:
        return "the system killed it, perhaps because memory was full"
    return signal.strsignal(-returncode) or f"signal {-returncode}" if returncode < 0 else f"exit status {returncode}"
