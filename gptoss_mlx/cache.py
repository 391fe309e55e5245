"""The KV state of one conversation: a growing buffer for each full layer, a ring for each sliding layer.

Knows shapes and positions; knows nothing about attention itself, tokens or text.
"""

from __future__ import annotations

import mlx.core as mx

from .config import ModelConfig


class FullKV:
    """Keys and values [1, kv_heads, positions, head_dim] of every position so far."""

    STEP = 256  # capacity grows by a quarter, in whole steps: few copies, little slack

    def __init__(self) -> None:
        self.keys: mx.array | None = None
        self.values: mx.array | None = None

    def reserve(self, offset: int, end: int, heads: int, width: int, dtype: mx.Dtype) -> None:
        """Make room for positions up to `end`, keeping those before `offset`."""
        if self.keys is not None and end <= self.keys.shape[2]:
            return
        capacity = -(-(end + end // 4) // self.STEP) * self.STEP
        self.keys, self.values = (
            _grown(buffer, offset, (1, heads, capacity, width), dtype) for buffer in (self.keys, self.values)
        )

    def update(self, offset: int, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Store keys and values [1, kv_heads, L, head_dim] of positions offset.. and return those of all positions."""
        _, heads, length, width = keys.shape
        end = offset + length
        self.reserve(offset, end, heads, width, keys.dtype)
        self.keys[:, :, offset:end] = keys
        self.values[:, :, offset:end] = values
        return self.keys[:, :, :end], self.values[:, :, :end]


def _grown(buffer: mx.array | None, filled: int, shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    grown = mx.zeros(shape, dtype)
    if buffer is not None:
        grown[:, :, :filled] = buffer[:, :, :filled]
    return grown


class RingKV:
    """Keys and values of the last `window` positions; position p lies in slot p % window."""

    def __init__(self, window: int):
        self.window = window
        self.keys: mx.array | None = None
        self.values: mx.array | None = None

    def reserve(self, offset: int, end: int, heads: int, width: int, dtype: mx.Dtype) -> None:
        """Make the ring, which has room for any `end`."""
        if self.keys is None:
            self.keys, self.values = (mx.zeros((1, heads, self.window, width), dtype) for _ in range(2))

    def update(self, offset: int, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Store keys and values [1, kv_heads, L, head_dim] of positions offset.. and return those that they may see.

        One position sees the whole ring, in the order of its slots (attention does not depend on the order of keys).
        Several see, in order of position, the `min(offset, window - 1)` before them and themselves.
        """
        _, heads, length, width = keys.shape
        self.reserve(offset, offset + length, heads, width, keys.dtype)
        self.keys, seen_keys = self._advance(self.keys, offset, keys)
        self.values, seen_values = self._advance(self.values, offset, values)
        return seen_keys, seen_values

    def _advance(self, ring: mx.array, offset: int, new: mx.array) -> tuple[mx.array, mx.array]:
        """The ring after `new` has been stored, and what the positions in `new` may see."""
        length = new.shape[2]
        if length == 1:
            slot = offset % self.window
            ring[:, :, slot : slot + 1] = new
            return ring, ring[:, :, : offset + 1]
        before = min(offset, self.window - 1)
        slots = mx.arange(offset - before, offset) % self.window
        seen = mx.concatenate([ring[:, :, slots], new], axis=2)
        kept = min(length, self.window)
        end = offset + length
        ring[:, :, mx.arange(end - kept, end) % self.window] = new[:, :, length - kept :]
        return ring, seen


class Cache:
    """The KV state of all layers after `offset` positions."""

    def __init__(self, config: ModelConfig):
        self.offset = 0
        self.window = config.sliding_window
        self.layers = [
            FullKV() if kind == "full_attention" else RingKV(config.sliding_window) for kind in config.layer_types
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
        return [array for layer in self.layers for array in (layer.keys, layer.values) if array is not None]

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays())
