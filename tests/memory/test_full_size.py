"""The budget at full size: a converted 20b folder under limits that the kernel enforces, and a long conversation.

GPTOSS_MLX_FULL_SIZE=FOLDER pytest -m slow tests/memory -s      (FOLDER: gpt-oss-20b with recipe mxfp4-q4)

With LLAMA_BENCH, the program, and LLAMA_GGUF, the same model for it, llama.cpp runs beside it under 8 GiB.
Each test prints its figures.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import sys
from pathlib import Path

import pytest

from gptoss_mlx import Sampling, Session, load
from gptoss_mlx.memory.plan import Device, make_plan
from gptoss_mlx.memory.system import proc_bytes
from memory.cgroup import Limited, run_limited, why_not

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
FILL = Path(__file__).with_name("fill.py")
GIB = 2**30


@pytest.fixture(scope="module")
def folder() -> Path:
    if name := os.environ.get("GPTOSS_MLX_FULL_SIZE"):
        return Path(name)
    pytest.skip("GPTOSS_MLX_FULL_SIZE names no folder")


def fill(folder: Path, limit: int, *arguments: object) -> dict:
    """fill.py under a limit; where no group can be made, without one: its own peak is still asserted."""
    drop_from_page_cache(folder)
    command = [sys.executable, str(FILL), str(folder), *map(str, arguments)]
    if reason := why_not():
        print(f"not limited: {reason}")
        import subprocess

        done = subprocess.run(command, capture_output=True, text=True)
        result = Limited(done.returncode, done.stdout, done.stderr, 0)
    else:
        result = run_limited(command, limit)
    assert result.returncode == 0, result.stderr
    figures = json.loads(result.stdout)
    plan = figures["plan"]
    print(
        f"\n{' '.join(map(str, arguments))}: peak {figures['peak'] / 1e9:.2f} of planned {plan['total'] / 1e9:.2f} GB"
        f" ({figures['peak'] / plan['total']:.1%}), context {plan['settings']['context']:,},"
        f" prefill {figures['prefill_tokens_per_second']:.1f}, decode {figures['tokens_per_second']:.2f} tokens/s,"
        f" experts {figures['experts']}"
    )
    assert figures["decoded"] == 64
    assert figures["peak"] <= plan["total"]
    return figures


def drop_from_page_cache(folder: Path) -> None:
    """Pages that another group has paid for would not count against the limit."""
    for path in folder.glob("*.safetensors"):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def test_16_gb_and_the_whole_context(folder):
    figures = fill(folder, 16 * GIB, "--memory", "16GB", "--context", 131072)
    assert figures["plan"]["settings"]["context"] == 131072
    assert figures["peak"] >= 0.95 * figures["plan"]["total"]


@pytest.mark.parametrize("gib", [12, 8, 6])
def test_less_memory(folder, gib):
    fill(folder, gib * GIB, "--memory", f"{gib}GiB")


def share_of_the_disk(figures: dict) -> float:
    """Time that the disk would need for what was read, over the time that decoding took."""
    seconds = figures["decoded"] / figures["tokens_per_second"]
    return figures["experts"]["bytes_read"] / figures["disk_bytes_per_second"] / seconds


def test_random_routing_decodes_at_the_speed_of_the_disk(folder):
    runs = [fill(folder, 8 * GIB, "--memory", "8GiB", "--prefill", 512, "--routing", "random") for _ in range(3)]
    shares = [share_of_the_disk(figures) for figures in runs]
    print("share of the disk's speed:", [f"{share:.0%}" for share in shares])
    assert statistics.median(shares) >= 0.7
    if "LLAMA_BENCH" not in os.environ:
        return
    gguf = Path(os.environ["LLAMA_GGUF"])
    command = [os.environ["LLAMA_BENCH"], "-m", gguf, "-t", 2, "-p", 0, "-n", 4, "-r", 1, "--repack", 0, "-lm", "mmap"]
    beside = run_limited(list(map(str, command)), 8 * GIB)
    print(beside.stdout, beside.stderr[-500:])
    theirs = float(re.search(r"tg4 \|\s*([\d.]+)", beside.stdout)[1])
    ours = statistics.median(figures["tokens_per_second"] for figures in runs)
    print(f"{ours:.2f} against {theirs:.2f} tokens/s: {ours / theirs:.1f} times")
    assert ours >= 5 * theirs


def test_skewed_routing_and_an_lru_pool(folder):
    """The bound: draws that do not depend on the past are served best by the likeliest experts, always the same."""
    rates = {"own": [], "lru": []}
    for policy in ("own", "lru") * 3:
        options = ("--memory", "8GiB", "--prefill", 512, "--routing", "skewed", "--policy", policy)
        figures = fill(folder, 8 * GIB, *options)
        rates[policy].append((figures["tokens_per_second"], figures["experts"]["hit_rate"]))
    own, lru = (statistics.median(speed for speed, _ in rates[policy]) for policy in ("own", "lru"))
    print(f"{own:.2f} against {lru:.2f} tokens/s with LRU: {own / lru:.2f} times; {rates}")
    assert own > lru


def test_200_turns(demo_folder):
    """With a context that is full before turn 20, so that keys and values have no part in it."""
    plan = make_plan(demo_folder, Device.here(), context=512)
    model = load(demo_folder, plan.settings)
    session = Session(model, sampling=Sampling(temperature=0), max_tokens=60, drop_when_full=True)
    sizes = []
    for turn in range(200):
        list(session.send(f"What is {turn} + {200 - turn}?"))
        status = proc_bytes("self/status")
        sizes.append(status["RssAnon"] + status["RssFile"])
    # The most of ten turns each: in some of them a shortened conversation is read anew.
    early, late = max(sizes[10:20]), max(sizes[190:])
    print(f"\nafter turn 20: {early / 1e6:.1f} MB, after turn 200: {late / 1e6:.1f} MB")
    assert late <= 1.02 * early
