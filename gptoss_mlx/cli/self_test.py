"""Facts about this machine, and a test whether the runtime computes right on it, for `gptoss-mlx doctor`.

The self-test runs on the embedded checkpoint. It covers what differs from machine to machine: mapped weights, the
device and its kernels against MLX's operations in FP32 on the CPU, the cache, and memory. It does not cover what
differs from model to model.
"""

from __future__ import annotations

import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import mlx.core as mx
import numpy as np

from .. import device, kernels
from ..engine.divergence import kl_divergence
from ..engine.generate import Model, load
from ..errors import GptOssError
from ..files import free_disk
from ..memory.system import GIB, cgroup_limit, proc_bytes, size_text, total
from ..model.model_store import home

# Limit of the error of activations in 8 bits (kernels) or in BF16 (GPU): the mean KL divergence, in nats, of the
# next token's distribution from that in FP32. The machines where it was measured had a hundredth of it.
MAX_DIVERGENCE = 1e-3
# The same where the work is only divided differently.
MAX_CHUNK_DIVERGENCE = 1e-3
TOKENS = 300  # of the self-test's text: more than the window of 128


def facts() -> Iterator[tuple[str, str]]:
    """Names and values, a line each."""
    runtime = device.runtime()
    yield "gptoss-mlx", f"{runtime.version}, MLX {runtime.mlx}, Python {platform.python_version()}"
    yield "system", f"{platform.system()} {platform.release()} on {platform.machine()}"
    yield "device", f"{runtime.device}, {runtime.name}"
    if native := kernels.native():
        others = [name for name in native.available_kernels() if name != native.kernels_in_use()]
        also = f" (also: {', '.join(others)})" if others else ""
        yield "kernels", f"on, {native.kernels_in_use()}{also}, {native.threads()} threads"
    else:
        yield "kernels", f"off: {kernels.why_not_native()}"
        if step := kernels.how_to_have_native():
            yield "to enable them", step
    yield from _memory()
    yield "models", f"{home()}, {size_text(free_disk(home()))} free"


def _memory() -> Iterator[tuple[str, str]]:
    if meminfo := proc_bytes("meminfo"):
        yield "memory", f"{meminfo['MemTotal'] / GIB:.1f} GiB, {meminfo['MemAvailable'] / GIB:.1f} GiB available"
    elif sys.platform == "darwin":
        yield "memory", f"{total() / GIB:.1f} GiB"
    if (limit := cgroup_limit()) is not None:
        yield "memory limit", f"{limit / GIB:.1f} GiB, set by the control group"
    if (gpu := device.gpu()) and gpu.is_unified and gpu.limit:
        limits = ((gpu.limit, "in total"), (gpu.max_buffer, "per buffer"))
        yield "GPU limit", ", ".join(f"{size / GIB:.1f} GiB {what}" for size, what in limits if size is not None)


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
        yield _checked("cache and window", lambda: _cache(first))
    yield _checked("read bandwidth", _bandwidth)


def _checked(name: str, check: Callable[[], tuple[bool, str]]) -> Check:
    try:
        return Check(name, *check())
    except (GptOssError, ValueError, RuntimeError, MemoryError) as error:
        return Check(name, False, " ".join(str(error).split()) or type(error).__name__)


def _mapped(folder: Path) -> tuple[bool, str]:
    from ..model.checkpoint import Checkpoint

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


def _divergence(right: np.ndarray, got: np.ndarray) -> float:
    """The mean over tokens, from logarithms of probabilities [tokens, vocabulary]."""
    return float(kl_divergence([np.stack([right, got], axis=1)])[0].mean())


def _logits(folder: Path) -> tuple[bool, str]:
    with device.reference():
        model = load(folder)
        ids = _ids(model)
        right = _log_probabilities(model, ids, len(ids))
    divergence = _divergence(right, _log_probabilities(load(folder), ids, len(ids)))
    return divergence < MAX_DIVERGENCE, f"{divergence:.1e} nats from FP32 on the CPU (limit {MAX_DIVERGENCE:.0e})"


def _cache(folder: Path) -> tuple[bool, str]:
    model = load(folder)
    ids = _ids(model)
    right = _log_probabilities(model, ids, len(ids))
    worst = max(_divergence(right, _log_probabilities(model, ids, chunk)) for chunk in (1, 100, 129))
    return (
        worst < MAX_CHUNK_DIVERGENCE,
        f"{worst:.1e} nats between chunks of 1 to {len(ids)} tokens (limit {MAX_CHUNK_DIVERGENCE:.0e})",
    )


def _bandwidth() -> tuple[bool, str]:
    bandwidth, native = kernels.read_bandwidth(), kernels.native()
    if bandwidth is None or native is None:
        return True, "not measured without kernels"
    return True, f"{bandwidth / 1e9:.1f} GB/s on {native.threads()} threads"
