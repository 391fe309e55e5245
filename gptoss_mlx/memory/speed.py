"""How fast a plan will decode: what one token reads, over the bandwidth of the device's memory times a share of it.

The shares are those that were measured, and `SOURCE` says where; nothing is measured here. For a conversation's first
tokens: keys and values make later ones slower. Where experts are paged, the disk decides, and no speed is given.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

from .plan import MemoryPlan
from .system import size_text

HERE = "this machine"  # its name among a device's bandwidths

# Backend -> the share of the memory's bandwidth that decoding reaches. Metal's is from what others published of Macs:
# 55 % on an M2 Max (MLX), 47 % on an M1 Pro, and 42 % on an M2 Ultra (llama.cpp). docs/benchmarks.md has all of them.
SHARE = {"gpu": 0.5, "kernels": 0.6, "cuda": 0.04, "cpu": 0.003}
SOURCE = {
    "gpu": "as other programs reach on Macs",
    "kernels": "as measured on x86-64",
    "cuda": "as measured on an H200",
    "cpu": "as measured on x86-64 without the kernels",
}


def decode_speeds(plan: MemoryPlan) -> dict[str, float]:
    """The name of each of the device's bandwidths -> tokens per second; empty where the disk decides."""
    if plan.token_disk_bytes:
        return {}
    rate = SHARE[plan.device.backend] / plan.token_bytes
    return {name: rate * bandwidth for name, bandwidth in plan.device.bandwidths.items()}


def decode_text(plan: MemoryPlan) -> str | None:
    """The same in a line, with what it is computed from and how sure that is; None where nothing is known."""
    if plan.token_disk_bytes:
        read, speed = size_text(plan.token_disk_bytes), speed_text(1e9 / plan.token_disk_bytes)
        return (
            f"decode: as fast as the disk: {read} of experts a token, so {speed} tokens/s for each GB/s that it gives"
        )
    speeds, share = decode_speeds(plan), SHARE[plan.device.backend]
    if not speeds:
        return None
    how = f"{share:.1%}".replace(".0%", "%").replace("%", " %")
    source = SOURCE[plan.device.backend]
    if bandwidth := plan.device.bandwidths.get(HERE):
        how = f"{how} of the {size_text(int(bandwidth))}/s measured here just now, {source}"
    else:
        how = f"a guess, {how} of the memory's bandwidth, {source}: nobody has run gptoss-mlx there"
    return f"decode: about {_by_name(speeds)} tokens/s: {how}"


def speed_text(tokens_per_second: float) -> str:
    """Two digits: more would say more than is known."""
    digits = 0 if tokens_per_second >= 9.5 else 1 if tokens_per_second >= 0.95 else 2
    return f"{tokens_per_second:.{digits}f}"


def range_text(speeds: Iterable[float]) -> str:
    """The slowest and the fastest; one figure if they do not differ."""
    shown = list(dict.fromkeys(map(speed_text, sorted(speeds))))
    return " to ".join(dict.fromkeys((shown[0], shown[-1])))


def _by_name(speeds: dict[str, float]) -> str:
    """Figures with the names that share them, the slowest first; the figure alone if there is one name."""
    if len(speeds) == 1:
        return speed_text(*speeds.values())
    named = sorted((speed, name) for name, speed in speeds.items())
    shown = ((text, [name for _, name in group]) for text, group in groupby(named, lambda each: speed_text(each[0])))
    return ", ".join(f"{text} ({', '.join(names)})" for text, names in shown)
