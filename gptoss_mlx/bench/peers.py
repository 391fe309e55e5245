"""Other runtimes to compare with: how each is asked to measure, how to read what it prints, and how it differs from us.

How runs alternate, and how a program is run and ended, is `comparison`'s affair.
"""

from __future__ import annotations

import os
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

from ..errors import GptOssError
from ..memory.system import size_text
from ..untrusted import lexists, open_regular, os_error_text, parse_json, read_json
from .results import Count, Grid, Point, Results

Run = Callable[[str, list[str]], bytes]
"""Runs a command line and returns what it printed; the name of the runtime is for errors."""

# The line of mlx_lm.benchmark with the speeds of a trial.
TRIAL = re.compile(rb"^Trial 1: +prompt_tps=(\d{1,9}\.\d+), generation_tps=(\d{1,9}\.\d+), ", re.MULTILINE)

# What is read of each entry of llama-bench's JSON: a speed, and what it was measured with.
COUNTS = "n_prompt n_gen n_depth model_size n_batch n_ubatch n_threads build_number"
TEXTS = "build_commit model_type gpu_info backends type_k type_v"
POSITIVE = {"avg_ts": Annotated[float, Meta(gt=0)], "model_n_params": Annotated[int, Meta(gt=0)]}
FIELDS = dict.fromkeys(COUNTS.split(), Count) | dict.fromkeys(TEXTS.split(), str) | POSITIVE
LlamaTest: Any = msgspec.defstruct("LlamaTest", FIELDS.items())


@dataclass(frozen=True)
class Reading:
    """The outcome of one run of a peer."""

    version: str
    speeds: dict[Point, float]
    """Tokens per second."""
    facts: dict[str, str]
    """Facts that the speeds depend on, by the names and in the words of `our_facts`, as far as they are known."""


class Peer(ABC):
    name: ClassVar[str]
    sizes: Grid

    @property
    def points(self) -> list[Point]:
        """The points that are compared."""
        return self.sizes.points

    @property
    def ours(self) -> Grid:
        """The grid that gptoss-mlx has to measure for that."""
        return self.sizes

    @abstractmethod
    def measure(self, run: Run) -> Reading:
        """Measure all points once. Raises GptOssError."""


@dataclass(frozen=True)
class MlxLm(Peer):
    """`mlx_lm.benchmark`, on the same folder. It decodes after its prompt, so that prompts are its depths, whatever
    `sizes` has for depths. Raises GptOssError for a folder that it would not read, and for no prompt or nothing to
    decode."""

    folder: Path
    sizes: Grid
    name: ClassVar[str] = "mlx-lm"
    facts: ClassVar[dict[str, str]] = {
        "operations": "MLX's own",
        "threads": "as MLX has it",
        "prefill": "2,048 tokens at a time",
        "prefill ends with": "a step of its own for the last token, and the choice of the next",
        "decode continues after": "its prompt",
        "decode of a token": "also log-probabilities and text",
        "decode counts": "the first token too, which its prefill timed; that one is taken off here",
        "KV cache": "16 bits",
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
            trial = TRIAL.search(run(self.name, program + counts))
            prefill, decode = map(float, trial.groups()) if trial else (0, 0)
            if not (prefill and decode):
                raise GptOssError(
                    "cannot read what mlx_lm.benchmark printed: it has no line with the speeds of a trial"
                )
            speeds[Point("prefill", prompt, 0)] = prefill
            speeds[Point("decode", generate, prompt)] = decode * generate / (generate + 1)
        return Reading(version("mlx-lm"), speeds, self.facts)


@dataclass(frozen=True)
class LlamaCpp(Peer):
    """`llama-bench` on a GGUF file, with `threads` of them, or as many as it takes by itself. Raises GptOssError for
    what is no program or no GGUF."""

    llama_bench: Path
    gguf: Path
    sizes: Grid
    threads: int | None
    name: ClassVar[str] = "llama.cpp"

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

    def measure(self, run: Run) -> Reading:
        words = [str(self.llama_bench.absolute()), "-m", str(self.gguf.absolute()), "-r", "1", "-o", "json"]
        words += ["-p", listed(self.sizes.prompt), "-n", listed(self.sizes.generate), "-d", listed(self.sizes.depth)]
        if self.threads is not None:
            words += ["-t", str(self.threads)]
        output = run(self.name, words)
        try:
            return _llama_bench_reading(parse_json(output))
        except ValueError as error:
            raise GptOssError(f"cannot read what llama-bench printed: {error}") from None


def our_facts(results: Results) -> dict[str, str]:
    """Facts that our speeds depend on, by name; where a fact is the same for a peer, its words are the same."""
    model, setup, kernels = results.model, results.setup, results.machine.kernels
    return {
        "weights": _weights(model.bits_per_weight, model.bytes),
        "quantization": model.recipe or "not known",
        "device": results.machine.device,
        "operations": f"kernels for {kernels}" if kernels else "MLX's own",
        "threads": "as MLX has it" if setup.threads is None else str(setup.threads),
        "prefill": f"{setup.prefill_chunk:,} tokens at a time",
        "prefill ends with": "the logits of the last token",
        "decode continues after": "as many tokens",
        "decode of a token": "logits and the greedy choice",
        "decode counts": "the tokens that it timed",
        "KV cache": f"{setup.kv_bits} bits",
        "experts": "all in memory" if setup.expert_slots is None else f"{setup.expert_slots:,} in memory at a time",
        "range of YaRN": "as the checkpoint has it",
    }


def _llama_bench_reading(output: Any) -> Reading:
    """Read the JSON of llama-bench. Raises ValueError."""
    tests = msgspec.convert(output, list[LlamaTest])
    if not tests:
        raise ValueError("it is no list of tests")
    test = tests[-1]
    kinds = {test.type_k, test.type_v}
    facts = {
        "weights": _weights(8 * test.model_size / test.model_n_params, test.model_size),
        "quantization": test.model_type,
        "device": test.gpu_info or "CPU",
        "operations": f"ggml's, {test.backends}",
        "threads": str(test.n_threads),
        "prefill": f"{min(test.n_batch, test.n_ubatch):,} tokens at a time",
        "decode of a token": "logits; the next token is random",
        "KV cache": "16 bits" if kinds <= {"f16", "bf16"} else f"{test.type_k} and {test.type_v}",
        "experts": "all in memory",
        "range of YaRN": "rounded, as of commit 0c1e570, for the same work",
    }
    speeds = {
        Point("prefill" if each.n_prompt else "decode", each.n_prompt or each.n_gen, each.n_depth): each.avg_ts
        for each in tests
    }
    return Reading(f"build {test.build_number}, commit {test.build_commit}", speeds, facts)


def _weights(bits: float, size: int) -> str:
    return f"{bits:.2f} bits each, {size_text(size)}"


def listed(counts: Sequence[int]) -> str:
    """Numbers as options take them, ours and llama-bench's: 0 is none."""
    return ",".join(map(str, counts)) or "0"
