"""A test whether the runtime computes right on this machine, for `gptoss-mlx doctor --self-test`.

It runs on the embedded checkpoint, and covers what differs from machine to machine: mapped weights, the device and its
kernels against MLX's operations in FP32 on the CPU, the ways to save memory, the cache, and memory. It does not cover
what differs from model to model.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from .. import device, kernels
from ..engine.divergence import kl_divergence
from ..engine.generate import Model, load
from ..errors import GptOssError
from ..memory.system import size_text
from ..model.checkpoint import Checkpoint
from .machine_facts import planned

# Limit of the error of activations in 8 bits (kernels) or in BF16 (GPU): the mean KL divergence, in nats, of the
# next token's distribution from that in FP32. The machines where it was measured had a hundredth of it.
MAX_DIVERGENCE = 1e-3
# The same where the work is only divided differently.
MAX_CHUNK_DIVERGENCE = 1e-3
TOKENS = 300  # of the self-test's text: more than the window of 128
CHUNKS = (1, 6, 100, 129)  # tokens at a time: Metal has a kernel for up to 4, one from 9, and none between
SLOTS = 16  # of 32 experts in the embedded model


@dataclass(frozen=True)
class Check:
    name: str
    passed: bool
    detail: str


def self_test() -> Iterator[Check]:
    """Each check when it is done. A check that cannot be made counts as failed, with the reason."""
    from gptoss_convert import RECIPES, convert

    from ..demo import CHECKPOINT

    with tempfile.TemporaryDirectory() as root:
        folders = {recipe: Path(root, recipe) for recipe in RECIPES}
        for recipe, folder in folders.items():
            convert(CHECKPOINT, folder, recipe)
        first = next(iter(folders.values()))
        yield _checked("mapped weights", lambda: _mapped(first))
        for recipe, folder in folders.items():
            yield _checked(f"logits, {recipe}", partial(_logits, folder))
        yield _checked("8-bit KV cache", lambda: _logits(first, kv_bits=8))
        yield _checked("paged experts", lambda: _logits(first, expert_slots=SLOTS))
        if (gpu := device.gpu()) and gpu.is_unified and kernels.native():
            yield _checked("experts on the CPU", lambda: _logits(first, cpu_expert_layers=1))
        yield _checked("cache and window", lambda: _cache(first))
        yield _checked("memory of MLX", lambda: _allocated(first))
    yield _checked("read bandwidth", _bandwidth)


def _checked(name: str, check: Callable[[], tuple[bool, str]]) -> Check:
    try:
        return Check(name, *check())
    except (GptOssError, ValueError, RuntimeError, MemoryError) as error:
        return Check(name, False, " ".join(str(error).split()) or type(error).__name__)


def _mapped(folder: Path) -> tuple[bool, str]:
    checkpoint = Checkpoint.open(folder)
    for name in checkpoint.tensors:
        got = checkpoint.array(name)
        bits = got.view(mx.uint16) if got.dtype == mx.bfloat16 else got
        if not np.array_equal(np.array(bits), checkpoint.view(name)):
            return False, f"{name} differs from its bytes in the file"
    if (gpu := device.gpu()) and not gpu.is_unified:
        return True, "read into the GPU's own memory"
    if not checkpoint.is_mapped:
        return False, "not mapped: weights are copied into memory, and a model takes twice its size"
    return True, f"{len(checkpoint.tensors)} tensors, without a copy"


def _ids(model: Model) -> list[int]:
    """Token ids of a conversation about sums, which the embedded model knows, longer than the attention window."""
    from ..engine.tokenizer import Tokenizer
    from ..harmony.messages import Conversation, Message
    from ..harmony.render import encode, render

    messages = []
    for a in range(100, 1000, 37):
        messages += [
            Message("user", f"What is {a} + {a + 7}?"),
            Message("assistant", f"{a} + {a + 7} = {2 * a + 7}", channel="final"),
        ]
    ids = encode(list(render(Conversation(tuple(messages[:-1])))), Tokenizer.load(model.path))
    return ids[:TOKENS]


def _log_probabilities(model: Model, ids: list[int], chunk: int) -> np.ndarray:
    cache = model.make_cache()
    logits = mx.concatenate([model(mx.array([ids[i : i + chunk]]), cache) for i in range(0, len(ids), chunk)], axis=1)
    logits = logits[0].astype(mx.float32)
    return np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))


def _divergences(right: np.ndarray, got: np.ndarray) -> np.ndarray:
    """Of each token, from logarithms of probabilities [tokens, vocabulary]."""
    return kl_divergence([np.stack([right, got], axis=1)])[0]


@cache
def _reference(folder: Path) -> tuple[list[int], np.ndarray]:
    """Token ids, and what MLX's operations compute for them in FP32 on the CPU."""
    with device.reference():
        model = load(folder)
        ids = _ids(model)
        return ids, _log_probabilities(model, ids, len(ids))


def _logits(folder: Path, **changes: Any) -> tuple[bool, str]:
    """With `changes` of the plan's settings."""
    ids, right = _reference(folder)
    model = load(folder)
    if changes:
        model = load(folder, replace(model.settings, **changes))
    each = _divergences(right, _log_probabilities(model, ids, len(ids)))
    return (
        float(each.mean()) < MAX_DIVERGENCE,
        f"{each.mean():.1e} nats from FP32 on the CPU, at most {each.max():.1e} (limit of the mean"
        f" {MAX_DIVERGENCE:.0e})",
    )


def _cache(folder: Path) -> tuple[bool, str]:
    model = load(folder)
    ids = _ids(model)
    right = _log_probabilities(model, ids, len(ids))
    worst, chunk = max((float(_divergences(right, _log_probabilities(model, ids, n)).mean()), n) for n in CHUNKS)
    return (
        worst < MAX_CHUNK_DIVERGENCE,
        f"{worst:.1e} nats between chunks of {chunk} and {len(ids)} tokens (limit {MAX_CHUNK_DIVERGENCE:.0e})",
    )


def _allocated(folder: Path) -> tuple[bool, str]:
    """On Metal, mapped files count too."""
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    model = load(folder)
    logits = model.prefill(_ids(model), model.make_cache())
    mx.eval(logits)
    active, peak = (count - before for count in (mx.get_active_memory(), mx.get_peak_memory()))
    assert model.plan
    limit = planned(model.plan)
    return peak <= limit, f"{size_text(active)} in use, at most {size_text(peak)}, planned {size_text(limit)}"


def _bandwidth() -> tuple[bool, str]:
    bandwidth, native = kernels.read_bandwidth(), kernels.native()
    if bandwidth is None or native is None:
        return True, "not measured without kernels"
    return True, f"{bandwidth / 1e9:.1f} GB/s on {native.threads()} threads"
