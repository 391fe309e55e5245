"""The KV state of one conversation: a growing buffer for each full layer, a ring for each sliding layer.

Knows shapes, positions and how keys and values are stored; knows nothing about attention itself, tokens or text.
"""

from __future__ import annotations

import mlx.core as mx

from .config import ModelConfig

# Keys and values of full layers can be kept in MLX's 8-bit affine form, where one head is one group of 32, 64 or 128.
BYTE_HEAD_DIMS = (32, 64, 128)

# What an update returns, and attention reads: an array, or in 8 bits codes [..., head_dim / 4], scales and biases
# [..., 1].
Stored = mx.array | tuple[mx.array, mx.array, mx.array]


class FullKV:
    """Keys and values [1, kv_heads, positions, head_dim] of every position so far, at most `context`.

    `buffers` are keys and values, or in 8 bits codes, scales and biases of the keys, then of the values.
    """

    STEP = 256  # capacity grows by a quarter, in whole steps: few copies, little slack

    def __init__(self, context: int, bits: int = 16):
        self.context, self.bits = context, bits
        self.buffers: list[mx.array] = []

    def reserve(self, offset: int, end: int, heads: int, width: int, dtype: mx.Dtype) -> None:
        """Make room for positions up to `end`, keeping those before `offset`."""
        if self.buffers and end <= self.buffers[0].shape[2]:
            return
        capacity = max(end, min(-(-(end + end // 4) // self.STEP) * self.STEP, self.context))
        forms = [(width, dtype)] if self.bits == 16 else [(width // 4, mx.uint32), (1, mx.bfloat16), (1, mx.bfloat16)]
        for index, (columns, kind) in enumerate(2 * forms):
            grown = mx.zeros((1, heads, capacity, columns), kind)
            if offset:
                grown[:, :, :offset] = self.buffers[index][:, :, :offset]
            # One at a time, so that no more than one buffer is there twice.
            mx.eval(grown)
            self.buffers[index : index + 1] = [grown]

    def update(self, offset: int, keys: mx.array, values: mx.array) -> tuple[Stored, Stored]:
        """Store keys and values [1, kv_heads, L, head_dim] of positions offset.. and return those of all positions."""
        _, heads, length, width = keys.shape
        end = offset + length
        self.reserve(offset, end, heads, width, keys.dtype)
        new = (keys, values) if self.bits == 16 else (*_in_bytes(keys), *_in_bytes(values))
        for buffer, part in zip(self.buffers, new, strict=True):
            buffer[:, :, offset:end] = part
        seen = [buffer[:, :, :end] for buffer in self.buffers]
        return tuple(seen) if self.bits == 16 else (tuple(seen[:3]), tuple(seen[3:]))


def _in_bytes(x: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    return mx.quantize(x.astype(mx.bfloat16), group_size=x.shape[-1], bits=8)


class RingKV:
    """Keys and values of the last `window` positions; position p lies in slot p % window."""

    def __init__(self, window: int):
        self.window = window
        self.buffers: list[mx.array] = []

    def reserve(self, offset: int, end: int, heads: int, width: int, dtype: mx.Dtype) -> None:
        """Make the ring, which has room for any `end`."""
        if not self.buffers:
            self.buffers = [mx.zeros((1, heads, self.window, width), dtype) for _ in range(2)]

    def update(self, offset: int, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Store keys and values [1, kv_heads, L, head_dim] of positions offset.. and return those that they may see.

        One position sees the whole ring, in the order of its slots (attention does not depend on the order of keys).
        Several see, in order of position, the `min(offset, window - 1)` before them and themselves.
        """
        _, heads, length, width = keys.shape
        self.reserve(offset, offset + length, heads, width, keys.dtype)
        seen_keys, seen_values = (
            self._advance(ring, offset, new) for ring, new in zip(self.buffers, (keys, values), strict=True)
        )
        return seen_keys, seen_values

    def _advance(self, ring: mx.array, offset: int, new: mx.array) -> mx.array:
        """Store `new` in the ring, and return what the positions in `new` may see."""
        length = new.shape[2]
        if length == 1:
            slot = offset % self.window
            ring[:, :, slot : slot + 1] = new
            return ring[:, :, : offset + 1]
        before = min(offset, self.window - 1)
        slots = mx.arange(offset - before, offset) % self.window
        seen = mx.concatenate([ring[:, :, slots], new], axis=2)
        kept = min(length, self.window)
        end = offset + length
        ring[:, :, mx.arange(end - kept, end) % self.window] = new[:, :, length - kept :]
        return seen


class Cache:
    """The KV state of all layers after `offset` positions, of at most `context`."""

    def __init__(self, config: ModelConfig, context: int | None = None, bits: int = 16):
        self.offset = 0
        self.context = context or config.max_context
        self.window = config.sliding_window
        self.layers = [
            FullKV(self.context, bits) if kind == "full_attention" else RingKV(config.sliding_window)
            for kind in config.layer_types
        ]

    def masks(self, length: int) -> dict[str, mx.array | str | None]:
        """For each type of layer, what `length` new positions may see of the keys that its `update` returns.

        None: everything; "causal": the last query sees the last key; else booleans [length, keys].
        """
        if length == 1:
            return {"full_attention": None, "sliding_attention": None}
        before = min(self.offset, self.window - 1)
        if before + length <= self.window:
            return {"full_attention": "causal", "sliding_attention": "causal"}
        query = mx.arange(before, before + length)[:, None]
        key = mx.arange(before + length)[None]
        return {"full_attention": "causal", "sliding_attention": (key <= query) & (key > query - self.window)}

    def arrays(self) -> list[mx.array]:
        """Everything that the state is made of, for `mx.eval`."""
        return [buffer for layer in self.layers for buffer in layer.buffers]

    @property
    def nbytes(self) -> int:
        return sum(buffer.nbytes for buffer in self.arrays())
