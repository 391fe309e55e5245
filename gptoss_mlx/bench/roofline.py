"""The limit of decoding: what one token has to read from memory, over what the memory gives.

Counts weights (of the experts, those of one token) and the keys and values that it attends to. Leaves out what stays in
a processor's cache: activations, and the row of the embedding table.
"""

from __future__ import annotations

from ..cache import Cache, RingKV
from ..checkpoint import Checkpoint
from ..config import ModelConfig


def weight_bytes(checkpoint: Checkpoint, config: ModelConfig) -> int:
    """Bytes of weights that one token reads."""
    total = 0
    for name, tensor in checkpoint.tensors.items():
        if name.startswith("model.embed_tokens"):
            continue
        of_experts = ".mlp.experts." in name
        total += tensor.nbytes * config.experts_per_token // config.num_experts if of_experts else tensor.nbytes
    return total


def kv_bytes(cache: Cache) -> int:
    """Bytes of keys and values that the next token attends to."""
    total = 0
    for layer in cache.layers:
        seen = min(cache.offset, layer.window) if isinstance(layer, RingKV) else cache.offset
        total += sum(buffer.nbytes // buffer.shape[2] * seen for buffer in layer.buffers)
    return total
