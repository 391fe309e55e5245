"""Metal's control flow on any machine: MLX answers as on a Mac with 16 GB, and computes on the CPU, in FP32: it needs
ten times as long for BF16, and adds up less exactly than Metal.

Knows what MLX is asked on a Mac, and what of a file it would adopt. Shows nothing of Metal's kernels and their speed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import mlx.core as mx
import numpy as np

from gptoss_mlx.device import BACKENDS
from gptoss_mlx.memory import devices
from gptoss_mlx.model.checkpoint import Checkpoint

PAGE = 16_384
RAM = 2**34
WORKING_SET = 11_453_251_584  # that Metal recommends on an M2 with 16 GB
M2 = {
    "device_name": "Apple M2",
    "architecture": "applegpu_g14g",
    "memory_size": RAM,
    "max_recommended_working_set_size": WORKING_SET,
    "max_buffer_length": 8_589_934_592,
    "resource_limit": 499_000,
}


@dataclass(frozen=True)
class Window:
    """Bytes start..end of a file, which MLX has adopted."""

    file: Path
    start: int
    end: int


@dataclass
class SimulatedMetal:
    reads: bool
    """Whether arrays have what they adopt; else they are zeros that nobody may evaluate, and take no memory."""
    windows: list[Window] = field(default_factory=list)
    limits: dict[str, int] = field(default_factory=dict)
    """The limits that MLX was given."""
    device: Any = None

    def adopt(self, pages: np.memmap, *, copy: bool) -> mx.array:
        """`mx.from_dlpack` as on Metal: whole pages, without a copy. They count as in use from then on."""
        whole = pages
        while isinstance(whole.base, np.ndarray):
            whole = whole.base
        start = pages.ctypes.data - whole.ctypes.data
        if copy or start % PAGE or pages.nbytes % PAGE:
            raise ValueError(f"not whole pages without a copy: {pages.nbytes} bytes at {start}")
        self.windows.append(Window(Path(pages.filename), start, start + pages.nbytes))
        return mx.array(np.asarray(pages)) if self.reads else mx.zeros(pages.shape, mx.uint32)

    def limit(self, name: str) -> Callable[[int], int]:
        """MLX's function that sets a limit, and returns the one before."""

        def set_limit(limit: int) -> int:
            before, self.limits[name] = self.limits.get(name, 2**60), limit
            return before

        return set_limit

    def set_device(self, device: Any) -> None:
        self.device = mx.Device(device) if isinstance(device, mx.DeviceType) else device

    @property
    def adopted(self) -> int:
        """Bytes that count as in use. The first window on each file is a trial, which is given back at once."""
        trials = {each.file: each for each in reversed(self.windows)}
        return sum(each.end - each.start for each in self.windows) - sum(
            each.end - each.start for each in trials.values()
        )

    def most_often(self) -> int:
        """How often a page was adopted at most, but for those at the ends of windows, which hold two tensors."""
        pages = Counter(
            (each.file, page) for each in self.windows for page in range(each.start // PAGE + 1, each.end // PAGE - 1)
        )
        return max(pages.values(), default=0)

    def touched(self, folder: Path) -> set[str]:
        """The tensors of a model of which a page that holds nothing else is adopted."""
        checkpoint = Checkpoint.open(folder)
        return {
            name
            for name, tensor in checkpoint.tensors.items()
            for each in self.windows
            if each.file == checkpoint.file_of[name]
            and max(each.start, -(-tensor.start // PAGE) * PAGE) < min(each.end, tensor.end // PAGE * PAGE)
        }


@contextmanager
def simulated_metal(*, reads: bool = True) -> Iterator[SimulatedMetal]:
    metal = SimulatedMetal(reads)
    metal.set_device(mx.gpu)
    with (
        patch.object(mx, "default_device", lambda: metal.device),
        patch.object(mx, "set_default_device", metal.set_device),
        patch.object(mx, "device_info", lambda *_: dict(M2)),
        patch.object(mx.metal, "is_available", lambda: True),
        patch.object(mx, "from_dlpack", metal.adopt),
        patch.object(mx, "set_memory_limit", metal.limit("memory")),
        patch.object(mx, "set_cache_limit", metal.limit("cache")),
        patch.object(devices, "total", lambda: RAM),
        patch.dict(BACKENDS, gpu=replace(BACKENDS["gpu"], activation_bytes=4 if reads else 2)),
    ):
        yield metal
