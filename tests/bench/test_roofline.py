"""What a token has to read and compute, against a count that goes through every token, layer and matrix by itself."""

import json
import struct
from collections import Counter
from functools import cache
from math import prod
from pathlib import Path

import mlx.core as mx
import pytest

from checkpoints import config_of, write_checkpoint
from gptoss_convert import RECIPES, convert
from gptoss_mlx import kernels
from gptoss_mlx.bench.results import Rates, Work
from gptoss_mlx.bench.roofline import Workload, mean_rates
from gptoss_mlx.engine.generate import load
from gptoss_mlx.memory.plan import EngineConfig
from gptoss_mlx.model.checkpoint import Checkpoint
from gptoss_mlx.model.config import ModelConfig
from gptoss_mlx.model.kv_cache import KVCache
from memory.shapes import SIZES, converted_shape

WINDOW, HEADS, KV_HEADS, WIDTH, EXPERTS, CHOSEN = 16, 4, 2, 64, 8, 4
CONFIG = config_of(sliding_window=WINDOW)
PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
SHAPES = {
    "self_attn.q_proj": (HEADS * WIDTH, 64),
    "self_attn.k_proj": (KV_HEADS * WIDTH, 64),
    "self_attn.v_proj": (KV_HEADS * WIDTH, 64),
    "self_attn.o_proj": (64, HEADS * WIDTH),
    "mlp.router": (EXPERTS, 64),
} | {f"mlp.experts.{name}": (64, 64) for name in PROJECTIONS}  # fmt: skip
HEAD = (CONFIG["vocab_size"], 64)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("source"), CONFIG)


@pytest.fixture(scope="module", params=RECIPES)
def folder(request, source, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("recipe") / request.param
    convert(source, folder, request.param)
    return folder


@cache
def workload_of(folder: Path, kv_bits: int) -> Workload:
    model = load(folder, EngineConfig(context=4096, kv_bits=kv_bits, prefill_chunk=512))
    return Workload(Checkpoint.open(folder).tensors, model.config, model.make_cache())


class Count:
    """Counts for one folder what the definitions in `results.Work` ask for."""

    def __init__(self, folder: Path, kv_bits: int):
        self.sizes, self.quantized = {}, set()
        for path in folder.glob("*.safetensors"):
            with path.open("rb") as file:
                header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
            for name, entry in header.items():
                if name != "__metadata__":
                    start, end = entry["data_offsets"]
                    self.sizes[name] = end - start
                    if name.endswith(".scales"):
                        self.quantized.add(name.removesuffix(".scales"))
        self.kinds = CONFIG["layer_types"]
        plain = 2 if kernels.native() or mx.default_device() != mx.cpu else 4
        self.full_row = KV_HEADS * (WIDTH * plain if kv_bits == 16 else WIDTH + 2 * 2)
        self.ring_row = KV_HEADS * WIDTH * plain
        self.bytes, self.operations = 0.0, Counter()

    @property
    def work(self) -> Work:
        return Work(round(self.bytes), self.operations["matrix"], self.operations["vector"])

    def read(self, prefix: str, share: float = 1) -> None:
        found = [size for name, size in self.sizes.items() if name.startswith(prefix)]
        assert found
        self.bytes += share * sum(found)

    def multiply(self, module: str, shape: tuple[int, int], times: int = 1) -> None:
        for _ in range(times):
            self.operations["matrix" if module in self.quantized else "vector"] += 2 * prod(shape)

    def read_layer(self, layer: int, share_of_experts: float) -> None:
        path = f"model.layers.{layer}"
        for part in ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp.router"):
            self.read(f"{path}.{part}.")
        self.read(f"{path}.mlp.experts.", share_of_experts)

    def multiply_layer(self, layer: int, position: int) -> None:
        """One token's products, and its attention to all that it sees."""
        for name, shape in SHAPES.items():
            times = CHOSEN if "experts" in name else 1
            self.multiply(f"model.layers.{layer}.{name}", shape, times)
        for _ in range(self.seen(layer, position)):
            for _ in range(HEADS):
                self.operations["vector"] += 2 * WIDTH + 2 * WIDTH  # a score, and a value that is added

    def seen(self, layer: int, position: int) -> int:
        oldest = position - WINDOW + 1 if self.kinds[layer] == "sliding_attention" else 0
        return sum(1 for key in range(position + 1) if key >= oldest)

    def read_kv(self, layer: int, position: int) -> None:
        row = self.ring_row if self.kinds[layer] == "sliding_attention" else self.full_row
        self.bytes += 2 * row * self.seen(layer, position)

    def head(self) -> None:
        self.read("model.norm.")
        self.read("lm_head.")
        self.multiply("lm_head", HEAD)


def counted_decode(folder: Path, kv_bits: int, depth: int, tokens: int) -> Work:
    count = Count(folder, kv_bits)
    for position in range(depth, depth + tokens):
        for layer in range(len(count.kinds)):
            count.read_layer(layer, CHOSEN / EXPERTS)
            count.read_kv(layer, position)
            count.multiply_layer(layer, position)
        count.head()
    return count.work


def counted_prefill(folder: Path, kv_bits: int, depth: int, tokens: int, chunk: int) -> Work:
    count = Count(folder, kv_bits)
    positions = list(range(depth, depth + tokens))
    while positions:
        together, positions = positions[:chunk], positions[chunk:]
        unchosen = 1.0
        for _ in together:
            unchosen *= 1 - CHOSEN / EXPERTS
        for layer in range(len(count.kinds)):
            count.read_layer(layer, 1 - unchosen)
            count.read_kv(layer, together[-1])
            for position in together:
                count.multiply_layer(layer, position)
    count.head()
    return count.work


@pytest.mark.parametrize("kv_bits", [16, 8])
@pytest.mark.parametrize(("depth", "tokens"), [(0, 1), (0, 5), (WINDOW - 3, 7), (WINDOW - 1, 1), (WINDOW, 2), (300, 3)])
def test_decode(folder, kv_bits, depth, tokens):
    found, wanted = workload_of(folder, kv_bits).decode(depth, tokens), counted_decode(folder, kv_bits, depth, tokens)
    assert abs(found.bytes - wanted.bytes) <= 1
    assert (found.matrix_operations, found.vector_operations) == (wanted.matrix_operations, wanted.vector_operations)


@pytest.mark.parametrize("kv_bits", [16, 8])
@pytest.mark.parametrize(
    ("depth", "tokens", "chunk"), [(0, 1, 8), (0, 8, 8), (0, 9, 8), (WINDOW - 3, 7, 4), (40, 33, 32), (7, 50, 512)]
)
def test_prefill(folder, kv_bits, depth, tokens, chunk):
    found = workload_of(folder, kv_bits).prefill(depth, tokens, chunk)
    wanted = counted_prefill(folder, kv_bits, depth, tokens, chunk)
    assert abs(found.bytes - wanted.bytes) <= 1
    assert (found.matrix_operations, found.vector_operations) == (wanted.matrix_operations, wanted.vector_operations)


@pytest.mark.parametrize("depth", [0, WINDOW - 1, WINDOW, 1000])
def test_stages_are_one_token(folder, depth):
    workload = workload_of(folder, 16)
    stages = workload.stage_bytes(depth)
    assert list(stages) == ["attention", "experts", "head"]
    assert abs(sum(stages.values()) - workload.decode(depth, 1).bytes) <= 2


def workload_of_shape(folder: Path, name: str) -> Workload:
    config = ModelConfig.load(converted_shape(folder, *SIZES[name]))
    return Workload(Checkpoint.open(folder).tensors, config, KVCache(config, [mx.bfloat16] * config.num_layers))


def test_the_published_20b(tmp_path):
    """Of a token: 1.28 GB of experts and routers and, in 4.5 bits, 0.36 of attention and 0.33 of the head; in 4.25 bits
    everything would be 1.92 GB. Keys and values of full layers are 24.6 kB a position."""
    workload = workload_of_shape(tmp_path / "20b", "20b")
    stages = workload.stage_bytes(0)
    assert {name: round(count / 1e9, 2) for name, count in stages.items()} == {
        "attention": 0.36,
        "experts": 1.28,
        "head": 0.33,
    }
    finer = stages["attention"] + stages["head"]
    assert round((workload.decode(0, 1).bytes - finer * 0.25 / 4.5) / 1e9, 2) == 1.92
    assert workload.decode(4096, 1).bytes - workload.decode(1024, 1).bytes == 3072 * 12 * 2 * 8 * 64 * 2
    work = workload.decode(0, 1)  # the model card has 3.6 B active parameters
    assert round((work.matrix_operations + work.vector_operations) / 2e9, 1) == 3.6
    # 512 tokens meet every expert: 10.15 GB of them.
    assert 10.8e9 < workload.prefill(0, 512, 512).bytes < 10.95e9


def test_the_published_120b(tmp_path):
    work = workload_of_shape(tmp_path / "120b", "120b").decode(0, 1)
    assert round((work.matrix_operations + work.vector_operations) / 2e9, 1) == 5.1


def test_least_seconds():
    work = Work(bytes=100, matrix_operations=30, vector_operations=20)
    assert work.least_seconds(Rates(bandwidth=10, matrix=30, vector=20)) == 10
    assert work.least_seconds(Rates(bandwidth=100, matrix=3, vector=2)) == 20
    for unknown in (Rates(None, 3, 2), Rates(10, None, 2), Rates(10, 3, None), Rates(None, None, None)):
        assert work.least_seconds(unknown) is None


def test_mean_rates():
    assert mean_rates([Rates(1, 2, None), Rates(3, 4, 5)]) == Rates(2, 3, None)
