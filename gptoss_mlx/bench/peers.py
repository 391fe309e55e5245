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
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

from ..errors import MAX_LENGTH, GptOssError
from ..memory.system import size_text
from ..process import Output, Stop, collect, signal_group
from ..untrusted import MAX_JSON, lexists, open_regular, os_error_text, parse_json, read_json
from .baseline import figures_of
from .figures import Figures, Grid, Point, Spread

OURS = "gptoss-mlx"
TIME_LIMIT = 1800.0  # seconds that one process may take
# No connections; what a person has set for `bench`, --against say, is not for the runs of a comparison; and what the
# current folder holds is no module of theirs.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "GPTOSS_MLX_CONFIG": os.devnull,
    "PYTHONSAFEPATH": "1",
}

Run = Callable[[str, list[str]], bytes]
"""From the name of a side, for errors, and a command line to what it printed."""


@dataclass(frozen=True)
class Reading:
    """What one run of a peer gave."""

    version: str
    speeds: dict[Point, float]
    """Tokens per second."""
    facts: dict[str, str]
    """What the figures depend on, by the names and in the words of `our_facts`, as far as it is known."""


class Peer(Protocol):
    name: str
    points: list[Point]
    """What is compared."""
    ours: Grid
    """What ours has to measure for that."""

    def measure(self, run: Run) -> Reading:
        """Measure all points once. Raises GptOssError."""


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
    def won(self) -> int:
        """The pairs in which ours was faster."""
        return sum(ratio > 1 for ratio in self.ratios)

    def as_dict(self) -> dict[str, Any]:
        sides = {"ours_tokens_per_second": self.ours, "theirs_tokens_per_second": self.theirs}
        ratio = {"ratios": self.ratios, "ratio": asdict(Spread.of(self.ratios)), "won": self.won}
        return {"name": self.point.name} | self.point._asdict() | sides | ratio


class Difference(NamedTuple):
    what: str
    ours: str
    theirs: str


@dataclass(frozen=True)
class Comparison:
    """Text in it is as it was found: who shows it has to escape it."""

    peer: str
    version: str
    """Of the peer."""
    pairs_asked: int
    differs: list[Difference]
    speeds: list[PairedSpeed]
    ours: Figures
    """Of our last run, but for the load average, which is that before the first, and `finished`, which is that of the
    comparison."""

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

    `ours_command` prints `Figures.as_dict()` as JSON once --prompt, --generate and --depth are added to it.
    `on_progress` is told in a line what runs, and how long a pair took. No process may take more than `time_limit`
    seconds. Raises GptOssError; a KeyboardInterrupt ends the process that runs.
    """
    ours: list[Figures] = []
    theirs: list[Reading] = []

    def run(name: str, words: list[str]) -> bytes:
        return _output(name, words, time_limit)

    turns = [
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


@dataclass(frozen=True)
class MlxLm:
    """`mlx_lm.benchmark`, on the same folder. It decodes behind its prompt, so that prompts are its depths, whatever
    `sizes` has for depths. Raises GptOssError for a folder that it would not read, and for no prompt or nothing to
    decode."""

    folder: Path
    sizes: Grid
    name: ClassVar = "mlx-lm"
    facts: ClassVar = {
        "operations": "MLX's own",
        "threads": "as MLX has it",
        "prefill": "2,048 tokens at a time",
        "prefill ends with": "a step of its own for the last token, and the choice of the next",
        "decode goes on behind": "its prompt",
        "decode of a token": "also log-probabilities and text",
        "decode counts": "the first token too, which its prefill timed; that one is taken off here",
        "keys and values": "16 bits",
        "experts": "all in memory",
        "range of YaRN": "rounded, for the same work",
    }

    def __post_init__(self) -> None:
        if not (self.sizes.prompt and self.sizes.generate):
            raise GptOssError(
                "mlx_lm.benchmark always has a prompt and decodes: neither --prompt nor --generate can be 0"
            )
        if not lexists(self.folder / "tokenizer.json"):
            raise GptOssError(f"{self.folder} has no tokenizer.json, and mlx_lm.benchmark does not run without one")
        for path in (self.folder / "config.json", self.folder / "tokenizer_config.json"):
            content = read_json(path) if lexists(path) else {}
            if isinstance(content, dict) and "auto_map" in content:
                raise GptOssError(f"{path} names code (auto_map), and mlx_lm.benchmark would run it: remove auto_map")

    @property
    def points(self) -> list[Point]:
        prompts = Grid(self.sizes.prompt, (), (0,)).points
        return prompts + [Point("decode", *pair) for pair in product(self.sizes.generate, self.sizes.prompt)]

    @property
    def ours(self) -> Grid:
        return Grid(self.sizes.prompt, self.sizes.generate, (0, *self.sizes.prompt))

    def measure(self, run: Run) -> Reading:
        speeds = {}
        for prompt, generate in product(self.sizes.prompt, self.sizes.generate):
            counts = ["-p", str(prompt), "-g", str(generate + 1), "-n", "1"]
            program = [sys.executable, "-m", "mlx_lm.benchmark", "--model", str(self.folder.absolute())]
            prefill, decode = _mlx_lm_speeds(run(self.name, program + counts))
            speeds[Point("prefill", prompt, 0)] = prefill
            speeds[Point("decode", generate, prompt)] = decode * generate / (generate + 1)
        return Reading(version("mlx-lm"), speeds, self.facts)


@dataclass(frozen=True)
class LlamaCpp:
    """`llama-bench` on a GGUF file, with `threads` of them, or as many as it takes by itself. Raises GptOssError for
    what is no program or no GGUF."""

    llama_bench: Path
    gguf: Path
    sizes: Grid
    threads: int | None
    name: ClassVar = "llama.cpp"

    def __post_init__(self) -> None:
        if not lexists(self.llama_bench):
            raise GptOssError(f"there is no {self.llama_bench}: give the path of llama-bench, a program of llama.cpp")
        if not (self.llama_bench.is_file() and os.access(self.llama_bench, os.X_OK)):
            raise GptOssError(f"{self.llama_bench} is no program that can be run: give the path of llama-bench")
        try:
            with open_regular(self.gguf) as file:
                magic = file.read(4)
        except (OSError, ValueError) as error:
            raise GptOssError(f"cannot read {self.gguf}: {os_error_text(error)}") from None
        if magic != b"GGUF":
            raise GptOssError(f"{self.gguf} is no GGUF file: llama.cpp's convert_hf_to_gguf.py makes one")

    @property
    def points(self) -> list[Point]:
        return self.sizes.points

    @property
    def ours(self) -> Grid:
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


def our_facts(figures: Figures) -> dict[str, str]:
    """What our figures depend on, by name; where it is the same for a peer, its words are the same."""
    model, setup, kernels = figures.model, figures.setup, figures.machine.kernels
    return {
        "weights": _weights(model.bits_per_weight, model.bytes),
        "quantization": model.recipe or "not known",
        "device": figures.machine.device,
        "operations": f"kernels for {kernels}" if kernels else "MLX's own",
        "threads": "as MLX has it" if setup.threads is None else str(setup.threads),
        "prefill": f"{setup.prefill_chunk:,} tokens at a time",
        "prefill ends with": "the logits of the last token",
        "decode goes on behind": "as many tokens",
        "decode of a token": "logits and the greedy choice",
        "decode counts": "the tokens that it timed",
        "keys and values": f"{setup.kv_bits} bits",
        "experts": "all in memory" if setup.expert_slots is None else f"{setup.expert_slots:,} in memory at a time",
        "range of YaRN": "as the checkpoint has it",
    }


def _measure_ours(run: Run, command: Sequence[str], sizes: Grid) -> Figures:
    counts = [(f"--{name}", _listed(counts)) for name, counts in asdict(sizes).items()]
    output = run(OURS, [*command, *(word for pair in counts for word in pair)])
    try:
        return figures_of(parse_json(output))
    except ValueError as error:
        raise GptOssError(f"cannot read what our own run printed: {error}") from None


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
    size, parameters = _get(test, "model_size", int), _get(test, "model_n_params", int)
    batch = min(_get(test, "n_batch", int), _get(test, "n_ubatch", int))
    keys, values = _get(test, "type_k", str), _get(test, "type_v", str)
    facts = {
        "weights": _weights(8 * size / max(parameters, 1), size),
        "quantization": _get(test, "model_type", str),
        "device": _get(test, "gpu_info", str) or "CPU",
        "operations": f"ggml's, {_get(test, 'backends', str)}",
        "threads": str(_get(test, "n_threads", int)),
        "prefill": f"{batch:,} tokens at a time",
        "decode of a token": "logits; it goes on with a random token",
        "keys and values": "16 bits" if {keys, values} <= {"f16", "bf16"} else f"{keys} and {values}",
        "experts": "all in memory",
        "range of YaRN": "rounded, as of commit 0c1e570, for the same work",
    }
    build = f"build {_get(test, 'build_number', int)}, commit {_get(test, 'build_commit', str)}"
    return Reading(build, speeds, facts)


def _get(entry: Any, name: str, kind: type) -> Any:
    """A value of a JSON object. Raises ValueError where it is not of its kind; a whole number is also a float."""
    value = entry.get(name) if isinstance(entry, dict) else None
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise ValueError(f"{name} is {value!r}")
    return value


def _speed(entry: Any, name: str) -> float:
    if (speed := _get(entry, name, float)) <= 0:
        raise ValueError(f"{name} is {speed}")
    return float(speed)


def _weights(bits: float, size: int) -> str:
    return f"{bits:.2f} bits each, {size_text(size)}"


def _listed(counts: Sequence[int]) -> str:
    """As options take them, ours and llama-bench's: 0 is none."""
    return ",".join(map(str, counts)) or "0"


def _comparison(peer: Peer, rounds: int, ours: list[Figures], theirs: list[Reading]) -> Comparison:
    our_speeds = [{each.point: each.tokens_per_second.median for each in figures.speeds} for figures in ours]
    for name, speeds in ((OURS, our_speeds[-1]), (peer.name, theirs[-1].speeds)):
        if missing := [point for point in peer.points if point not in speeds]:
            raise GptOssError(f"{name} gave no figure for {missing[0].name}")
    conditions = replace(ours[-1].conditions, load_average=ours[0].conditions.load_average)
    facts = our_facts(ours[-1])
    return Comparison(
        peer=peer.name,
        version=theirs[-1].version,
        pairs_asked=rounds,
        differs=[Difference(name, facts[name], fact) for name, fact in theirs[-1].facts.items() if fact != facts[name]],
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
