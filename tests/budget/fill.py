"""A process that fills what its plan allows: prefills, touches the KV state of the whole context, decodes; prints JSON.

python tests/budget/fill.py FOLDER --memory 8GiB [--context N] [--prefill 2048] [--decode 64] [--kernels-off]
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import asdict, replace
from pathlib import Path

import mlx.core as mx

from gptoss_mlx import Sampling, load
from gptoss_mlx.budget import Device, make_plan
from gptoss_mlx.cache import FullKV
from gptoss_mlx.memory import parse_size, proc_bytes
from gptoss_mlx.tokenizer import Tokenizer

arguments = argparse.ArgumentParser()
arguments.add_argument("folder", type=Path)
arguments.add_argument("--memory", type=parse_size)
arguments.add_argument("--context", type=int)
arguments.add_argument("--kv-bits", type=int)
arguments.add_argument("--prefill", type=int, default=2048)
arguments.add_argument("--decode", type=int, default=64)
asked = arguments.parse_args()

plan = make_plan(asked.folder, Device.here(), memory=asked.memory, context=asked.context, kv_bits=asked.kv_bits)
model = load(asked.folder, plan.settings)
tokenizer = Tokenizer.load(asked.folder)  # a part of every conversation's memory
ids = random.Random(1).choices(range(model.config.vocab_size), k=min(asked.prefill, model.context - asked.decode - 1))
cache = model.make_cache()
started = time.perf_counter()
mx.eval(model.prefill(ids, cache))
prefill_seconds = time.perf_counter() - started

heads, width = model.config.num_kv_heads, model.config.head_dim
for layer in cache.layers:
    if isinstance(layer, FullKV):
        layer.reserve(cache.offset, model.context, heads, width, layer.buffers[0].dtype)

before = replace(model.expert_stats) if model.expert_stats else None
started, decoded = time.perf_counter(), 0
for _ in model.generate(ids[:1], sampling=Sampling(temperature=0), max_tokens=asked.decode, stop=(), cache=cache):
    decoded += 1
decode_seconds = time.perf_counter() - started
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
            "experts": asdict(model.expert_stats - before) | {"hit_rate": (model.expert_stats - before).hit_rate}
            if before
            else None,
        }
    )
)
