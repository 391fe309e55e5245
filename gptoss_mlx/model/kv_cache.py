"""The KV cache of one conversation: a growing buffer for each full layer, a ring for each sliding layer.

A sliding layer overwrites positions that its window has passed, so the cache can rewind by one position only; to rewind
further it needs a `Snapshot`, a copy of the rings.

Knows shapes, positions and how keys and values are stored; knows nothing about attention itself, tokens or text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx

from .config import ModelConfig

# Full layers can have an 8-bit KV cache, in MLX's affine form with one head as one group: of 32, 64 or 128 values.
KV_QUANT_HEAD_DIMS = (32, 64, 128)

# Snapshots of a conversation: the oldest one, usually after the instructions, and the newest ones.
MAX_SNAPSHOTS = 8

# Positions that are copied at a time to be saved: 12.6 MB for gpt-oss-20b.
KV_CHUNK = 512


class FullKV:
    """Keys and values [1, kv_heads, capacity, head_dim] of every position so far, up to `context`.

    `buffers` are the keys and the values; in an 8-bit KV cache the codes [..., head_dim / 4], scales [..., 1] and
    biases [..., 1] of the keys, then those of the values.
    """

    STEP = 256

    def __init__(self, context: int, heads: int, width: int, dtype: mx.Dtype, bits: int = 16):
        self.context, self.heads, self.bits = context, heads, bits
        vectors = [(width, dtype)] if bits == 16 else [(width // 4, mx.uint32), (1, mx.bfloat16), (1, mx.bfloat16)]
        self.forms = 2 * vectors  # columns and dtype of each buffer
        self.buffers: list[mx.array] = []

    @classmethod
    def capacity(cls, end: int, context: int) -> int:
        """Positions that get room where `end` are needed: a quarter more, in whole steps, for few copies and little
        slack."""
        return max(end, min(-(-(end + end // 4) // cls.STEP) * cls.STEP, context))

    def reserve(self, offset: int, end: int) -> None:
        """Make room for positions up to `end`, keeping those before `offset`."""
        if self.buffers and end <= self.buffers[0].shape[2]:
            return
        capacity = self.capacity(end, self.context)
        for index, (columns, dtype) in enumerate(self.forms):
            grown = mx.zeros((1, self.heads, capacity, columns), dtype)
            if offset:
                grown[:, :, :offset] = self.buffers[index][:, :, :offset]
            # One at a time, so that only one buffer has two copies.
            mx.eval(grown)
            self.buffers[index : index + 1] = [grown]

    def update(self, offset: int, keys: mx.array, values: mx.array) -> list[mx.array]:
        """Store keys and values [1, kv_heads, L, head_dim] of positions offset.. and return the `buffers`, cut to all
        positions so far."""
        new = (keys, values) if self.bits == 16 else (*quantize_kv(keys), *quantize_kv(values))
        self.store(offset, new)
        return [buffer[:, :, : offset + keys.shape[2]] for buffer in self.buffers]

    def store(self, offset: int, new: Sequence[mx.array]) -> None:
        """Store the parts of each buffer, [1, kv_heads, L, columns], at positions offset.."""
        end = offset + new[0].shape[2]
        self.reserve(offset, end)
        for buffer, part in zip(self.buffers, new, strict=True):
            buffer[:, :, offset:end] = part


def quantize_kv(x: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """x [..., head_dim] -> codes uint32 [..., head_dim / 4], scales and biases BF16 [..., 1]."""
    return mx.quantize(x.astype(mx.bfloat16), group_size=x.shape[-1], bits=8)


class RingKV:
    """Keys and values of the last `window` positions; position p lies in slot p % window."""

    def __init__(self, window: int, heads: int, width: int, dtype: mx.Dtype):
        self.window, self.heads = window, heads
        self.forms = 2 * [(width, dtype)]
        self.buffers: list[mx.array] = []

    def reserve(self, offset: int, end: int) -> None:
        """Allocate the ring, which has room for any `end`."""
        if not self.buffers:
            self.buffers = [mx.zeros((1, self.heads, self.window, width), dtype) for width, dtype in self.forms]

    def update(self, offset: int, keys: mx.array, values: mx.array) -> list[mx.array]:
        """Store keys and values [1, kv_heads, L, head_dim] of positions offset.. and return those that they may see.

        One position sees the whole ring, in the order of its slots (attention does not depend on the order of keys).
        Several see, in order of position, the `min(offset, window - 1)` before them and themselves.
        """
        self.reserve(offset, offset + keys.shape[2])
        return [self._advance(ring, offset, new) for ring, new in zip(self.buffers, (keys, values), strict=True)]

    def _advance(self, ring: mx.array, offset: int, new: mx.array) -> mx.array:
        """Store `new` in the ring, and return the positions that those in `new` may see."""
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


@dataclass(frozen=True)
class Snapshot:
    """The rings of a cache at `offset`: with the buffers of full layers, which keep all positions, the whole cache."""

    offset: int
    rings: Mapping[str, mx.array]
    """Name -> [1, kv_heads, window, head_dim]; the name is LAYER.0 for keys, LAYER.1 for values."""


class KVCache:
    """Keys and values of all layers for the first `offset` positions, of up to `context`."""

    def __init__(self, config: ModelConfig, dtypes: Sequence[mx.Dtype], context: int | None = None, bits: int = 16):
        """`dtypes` are those of the keys and values of each layer; `bits` are 16 or 8, in full layers."""
        self.offset = 0
        self._written = 0  # positions that the rings hold, some of them perhaps after `offset`
        self.context = context or config.max_context
        self.window = config.sliding_window
        shape = config.num_kv_heads, config.head_dim
        self.layers = [
            FullKV(self.context, *shape, dtype, bits)
            if kind == "full_attention"
            else RingKV(config.sliding_window, *shape, dtype)
            for kind, dtype in zip(config.layer_types, dtypes, strict=True)
        ]

    def __repr__(self) -> str:
        return f"KVCache({self.offset:,} of {self.context:,} positions, {self.nbytes:,} bytes)"

    def advance(self, count: int) -> None:
        """Count positions that all layers have stored."""
        self.offset += count
        self._written = self.offset

    def reachable(self, wanted: int, snapshot: Snapshot | None = None) -> int:
        """The offset nearest to `wanted` to which this cache, or a snapshot of it, can rewind; 0 if the rings lack
        positions.

        A ring has room for one position more than the next one sees; before it is full, it lacks none.
        """
        offset, written = (snapshot.offset, snapshot.offset) if snapshot else (self.offset, self._written)
        if offset <= wanted:
            return offset
        return wanted if wanted >= written - 1 or written <= self.window else 0

    def snapshot(self) -> Snapshot | None:
        """A copy of the rings; None after a rewind, where they hold later positions."""
        if self._written > self.offset:
            return None
        rings = {name: _copy(ring) for name, ring in self._buffers(RingKV).items()}
        mx.eval(rings)
        return Snapshot(self.offset, rings)

    def rewind(self, offset: int, snapshot: Snapshot | None = None) -> None:
        """Rewind to `offset`, which must be `reachable` for this cache or the snapshot."""
        if snapshot:
            for name, ring in snapshot.rings.items():
                layer, part = map(int, name.split("."))
                self.layers[layer].reserve(0, offset)
                self.layers[layer].buffers[part] = _copy(ring)
            self._written = snapshot.offset
        self.offset = offset

    def chunk(self, start: int, end: int) -> dict[str, mx.array]:
        """Positions start..end of full layers: name -> a view [1, kv_heads, end - start, columns]. The name is
        LAYER.BUFFER, two numbers."""
        return {name: buffer[:, :, start:end] for name, buffer in self._buffers(FullKV).items()}

    def copy_positions(self, other: KVCache, count: int) -> None:
        """Take over the first positions of the full layers of another cache of this model."""
        for layer in self.layers:
            layer.reserve(0, count)
        for start in range(0, count, KV_CHUNK):
            self.restore(start, other.chunk(start, min(start + KV_CHUNK, count)))

    def restore(self, start: int, chunk: Mapping[str, mx.array]) -> None:
        """Store a `chunk` at positions start..; it must have the `chunk_forms` of its length."""
        for index, layer in enumerate(self.layers):
            if isinstance(layer, FullKV):
                layer.store(start, [chunk[f"{index}.{part}"] for part in range(len(layer.forms))])
        mx.eval(self.arrays())

    def chunk_forms(self, length: int) -> dict[str, tuple[tuple[int, ...], mx.Dtype]]:
        """Shape and dtype of each part of a `chunk` of `length` positions."""
        return self._forms(FullKV, length)

    def ring_forms(self) -> dict[str, tuple[tuple[int, ...], mx.Dtype]]:
        """Shape and dtype of each ring of a snapshot."""
        return self._forms(RingKV, self.window)

    def _forms(self, kind: type[FullKV | RingKV], length: int) -> dict[str, tuple[tuple[int, ...], mx.Dtype]]:
        return {
            f"{index}.{part}": ((1, layer.heads, length, columns), dtype)
            for index, layer in enumerate(self.layers)
            if isinstance(layer, kind)
            for part, (columns, dtype) in enumerate(layer.forms)
        }

    def _buffers(self, kind: type[FullKV | RingKV]) -> dict[str, mx.array]:
        return {
            f"{index}.{part}": buffer
            for index, layer in enumerate(self.layers)
            if isinstance(layer, kind)
            for part, buffer in enumerate(layer.buffers)
        }

    def masks(self, length: int) -> dict[str, mx.array | str | None]:
        """For each type of layer, the keys returned by `update` that each of `length` new positions may see.

        None: all; "causal": the last query sees the last key; else booleans [length, keys], in sliding layers only.
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
        """All buffers, for `mx.eval`."""
        return [buffer for layer in self.layers for buffer in layer.buffers]

    def bytes_for(self, positions: int) -> int:
        """Bytes of so many positions, with the rings."""
        return sum(
            layer.heads * columns * dtype.size * (layer.window if isinstance(layer, RingKV) else positions)
            for layer in self.layers
            for columns, dtype in layer.forms
        )

    @property
    def nbytes(self) -> int:
        """Allocated bytes."""
        return sum(buffer.nbytes for buffer in self.arrays())


def _copy(ring: mx.array) -> mx.array:
    """A copy in memory of its own: `mx.array`, a slice or a product with 1 may share memory, and the kernels write in
    place."""
    return mx.concatenate([ring[:, :, :1], ring[:, :, 1:]], axis=2)
