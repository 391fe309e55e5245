"""One step of decoding by stage: attention, experts, head, and the rest.

A stage is timed by itself, in all layers one after the other, each with its own weights and keys and values: as in a
step, but for what flows through it. So nothing has to wait between stages, which on a GPU would cost more than some of
them. The rest is what a whole step takes beyond them: the embedding, sampling, and whatever computes nothing.

What flows through decides which experts are read where they are paged: there they are what a step takes beyond
attention and head, the rest included.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from itertools import pairwise

import mlx.core as mx

from ..engine.generate import Model
from ..engine.sampling import Sampling
from ..model.kv_cache import KVCache
from .results import Profile, Stage
from .roofline import Workload

GREEDY = Sampling(temperature=0)
STEPS = 8  # at a time, so that a GPU need not wait for Python
ROUNDS = 5


def decode_seconds(model: Model, cache: KVCache, first: int, count: int, check: Callable[[], None]) -> list[float]:
    """Seconds of each of `count` tokens that are decoded after `first`, which follows what `cache` holds."""
    tokens = model.generate([first], sampling=GREEDY, max_tokens=count + 1, stop=(), cache=cache)
    next(tokens)  # prefill ends with the first one
    ends = [time.perf_counter()]
    for _ in tokens:
        ends.append(time.perf_counter())
        check()
    return [end - begun for begun, end in pairwise(ends)]


def profile(
    model: Model, cache: KVCache, workload: Workload, bandwidth: float | None, check: Callable[[], None]
) -> Profile:
    """Profile a step after what `cache` holds, which needs room for STEPS + 1 more; it is left as it was.

    `check` is called again and again, and may raise.
    """
    depth, snapshot, network = cache.offset, cache.snapshot(), model.network
    masks = cache.masks(1)

    def attention(x: mx.array) -> mx.array:
        for layer, kind, kv in zip(network.layers, model.config.layer_types, cache.layers, strict=True):
            x = layer.attention(x, depth, masks[kind], kv)
        return x

    def experts(x: mx.array) -> mx.array:
        for layer in network.layers:
            x = layer.moe(x)
        return x

    def head(x: mx.array) -> mx.array:
        return network.logits(network.norm(x))[..., : x.shape[-1]]

    def through(stage: Callable[[mx.array], mx.array]) -> float:
        y = x
        started = time.perf_counter()
        for _ in range(STEPS):
            mx.async_eval(y := stage(y))
        mx.eval(y)
        return (time.perf_counter() - started) / STEPS

    def steps() -> float:
        cache.rewind(depth, snapshot)
        return sum(decode_seconds(model, cache, 0, STEPS, check)) / STEPS

    x = network.embedding(mx.array([[0]]))
    mx.eval(x)
    apart = (attention, head) if network.pool else (attention, experts, head)
    rounds = []
    for _ in range(1 + ROUNDS):  # all in each, so that what disturbs one disturbs the others too
        check()
        rounds.append([*map(through, apart), steps()])
    cache.rewind(depth, snapshot)
    *found, step = map(statistics.median, zip(*rounds[1:], strict=True))
    seconds = dict(zip((stage.__name__ for stage in apart), found, strict=True))
    # Single stages can be slower than in a step, which is then shorter than all of them.
    seconds["experts" if network.pool else "rest"] = max(step - sum(found), 0)
    sizes = workload.stage_bytes(depth)
    return Profile(depth, [Stage(name, each, sizes.get(name, 0)) for name, each in seconds.items()], bandwidth)
