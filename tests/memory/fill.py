"""A process that fills what its plan allows: prefills, touches the KV state of the whole context, decodes; prints JSON.

python tests/memory/fill.py FOLDER --memory 8GiB [--context N] [--prefill 2048] [--decode 64] [--routing ROUTING]
    [--policy lru]

ROUTING is the model's own, "random" (each expert as likely as any other), or "skewed" (80 % of the mass on half of the
experts, another half in each layer).
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import mlx.core as mx
import numpy as np

from gptoss_mlx import Sampling, load
from gptoss_mlx.engine.tokenizer import Tokenizer
from gptoss_mlx.memory.plan import Device, make_plan
from gptoss_mlx.memory.system import parse_size, proc_bytes
from gptoss_mlx.model.expert_pool import ExpertPool, SlotTable
from gptoss_mlx.model.experts import MoeParts
from gptoss_mlx.model.kv_cache import FullKV

PIECE = 4 << 20  # about the weights of one projection of one expert


class Routed:
    """Parts of a layer whose router is replaced by chance: expert e is drawn with odds[e], the k of a token differ."""

    def __init__(self, parts: MoeParts, odds: np.ndarray, seed: int):
        self.parts, self.odds, self.generator = parts, odds, np.random.default_rng(seed)

    def __getattr__(self, name: str) -> object:
        return getattr(self.parts, name)

    def route(self, x: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        normed, chosen, share = self.parts.route(x)
        # Gumbel's trick: the k largest are a draw without replacement.
        scores = np.log(self.odds) + self.generator.gumbel(size=(len(normed), len(self.odds)))
        drawn = np.argsort(-scores, axis=1)[:, : chosen.shape[1]].astype(np.int32)
        return normed, mx.array(drawn), share


def use_last(table: SlotTable, layer: int, counts: np.ndarray, tokens: int) -> None:
    """LRU: the value of an expert is when it was used last."""
    table.time = getattr(table, "time", 0) + 1
    table._value[layer][counts > 0] = table.time


def odds_of(routing: str, experts: int, seed: int) -> np.ndarray:
    if routing == "random":
        return np.full(experts, 1 / experts)
    odds = np.where(np.arange(experts) < experts // 2, 0.8, 0.2) / (experts // 2)
    return np.random.default_rng(seed).permutation(odds)


def disk_bandwidth(folder: Path, count: int = 250) -> float:
    """Bytes per second of direct reads of pieces at random places of the shards, as many at a time as the pool has."""
    files = [path for path in folder.glob("*.safetensors") if path.stat().st_size > PIECE]
    opened = [(os.open(path, os.O_RDONLY | os.O_DIRECT), path.stat().st_size) for path in files]
    chance, own = random.Random(2), threading.local()
    places = [
        (file, chance.randrange(0, (size - PIECE) // 4096) * 4096)
        for file, size in chance.choices(opened, [size for _, size in opened], k=count)
    ]

    def read(place: tuple[int, int]) -> None:
        if not hasattr(own, "pages"):
            own.pages = mmap.mmap(-1, PIECE)
            own.pages.madvise(mmap.MADV_HUGEPAGE)
        os.preadv(place[0], [own.pages], place[1])

    started = time.perf_counter()
    with ThreadPoolExecutor(ExpertPool.READERS) as readers:
        list(readers.map(read, places))
    seconds = time.perf_counter() - started
    for file, _ in opened:
        os.close(file)
    return count * PIECE / seconds


arguments = argparse.ArgumentParser()
arguments.add_argument("folder", type=Path)
arguments.add_argument("--memory", type=parse_size)
arguments.add_argument("--context", type=int)
arguments.add_argument("--kv-bits", type=int)
arguments.add_argument("--prefill", type=int, default=2048)
arguments.add_argument("--decode", type=int, default=64)
arguments.add_argument("--routing", choices=["own", "random", "skewed"], default="own")
arguments.add_argument("--policy", choices=["own", "lru"], default="own")
asked = arguments.parse_args()

plan = make_plan(asked.folder, Device.here(), memory=asked.memory, context=asked.context, kv_bits=asked.kv_bits)
if asked.policy == "lru":
    SlotTable.use = use_last
model = load(asked.folder, plan.settings)
if asked.routing != "own":
    for index, layer in enumerate(model.network.layers):
        odds = odds_of(asked.routing, model.config.num_experts, index)
        layer.moe.parts = Routed(layer.moe.parts, odds, index)
        layer.moe.next_parts = None  # what is drawn by chance, no router foresees
tokenizer = Tokenizer.load(asked.folder)  # a part of every conversation's memory
ids = random.Random(1).choices(range(model.config.vocab_size), k=min(asked.prefill, model.context - asked.decode - 1))
cache = model.make_cache()
started = time.perf_counter()
mx.eval(model.prefill(ids, cache))
prefill_seconds = time.perf_counter() - started

for layer in cache.layers:
    if isinstance(layer, FullKV):
        layer.reserve(cache.offset, model.context)

disk = disk_bandwidth(asked.folder) if model.expert_stats else 0
before = replace(model.expert_stats) if model.expert_stats else None
started, decoded = time.perf_counter(), 0
for _ in model.generate(ids[:1], sampling=Sampling(temperature=0), max_tokens=asked.decode, stop=(), cache=cache):
    decoded += 1
decode_seconds = time.perf_counter() - started
disk = (disk + disk_bandwidth(asked.folder)) / 2 if model.expert_stats else None
status = proc_bytes("self/status")
print(
    json.dumps(
        {
            "plan": plan.as_dict(),
            "peak": status.get("VmHWM"),
            "anonymous": status.get("RssAnon"),
            "mapped": status.get("RssFile"),
            "prefill_tokens_per_second": len(ids) / prefill_seconds,
            "decoded": decoded,
            "tokens_per_second": decoded / decode_seconds,
            "disk_bytes_per_second": disk,
            "experts": asdict(model.expert_stats - before) | {"hit_rate": (model.expert_stats - before).hit_rate}
            if before
            else None,
        }
    )
)
