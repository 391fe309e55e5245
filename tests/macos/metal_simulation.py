"""Metal's control flow on any machine: MLX says what it says on a Mac with 16 GB, and computes on the CPU.

Knows what MLX is asked on a Mac, and what of a file it would adopt; shows nothing of Metal's kernels or of their speed.
Run as a program, it is `gptoss-mlx` on such a Mac: `python -m macos.metal_simulation doctor`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import mlx.core as mx
import numpy as np

PAGE = 16_384
M2 = {
    "device_name": "Apple M2",
    "architecture": "applegpu_g14g",
    "memory_size": 2**34,
    "max_recommended_working_set_size": 11_453_251_584,
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
    """What was asked of MLX so far."""

    windows: list[Window] = field(default_factory=list)
    limits: dict[str, int] = field(default_factory=dict)
    device: Any = mx.gpu

    @property
    def adopted(self) -> int:
        """Bytes that MLX would count as active memory for good."""
        return sum(window.end - window.start for window in self.windows)

    def adopt(self, pages: np.memmap, *, copy: bool) -> mx.array:
        """`mx.from_dlpack`, as Metal takes it: whole pages, without a copy."""
        whole = pages
        while isinstance(whole.base, np.ndarray):
            whole = whole.base
        start = pages.ctypes.data - whole.ctypes.data
        if copy or start % PAGE or pages.nbytes % PAGE:
            raise ValueError(f"not whole pages: {pages.nbytes} bytes from {start}")
        self.windows.append(Window(Path(pages.filename), start, start + pages.nbytes))
        return mx.array(np.asarray(pages))

    def set_device(self, device: Any) -> None:
        self.device = device if isinstance(device, mx.Device) else mx.Device(device)


@contextmanager
def simulated_metal() -> Iterator[SimulatedMetal]:
    metal = SimulatedMetal(device=mx.Device(mx.gpu))
    with (
        patch.object(mx, "default_device", lambda: metal.device),
        patch.object(mx, "set_default_device", metal.set_device),
        patch.object(mx, "device_info", lambda *_: dict(M2)),
        patch.object(mx.metal, "is_available", lambda: True),
        patch.object(mx, "from_dlpack", metal.adopt),
        patch.object(mx, "set_memory_limit", lambda limit: metal.limits.update(memory=limit)),
        patch.object(mx, "set_cache_limit", lambda limit: metal.limits.update(cache=limit)),
    ):
        yield metal


if __name__ == "__main__":
    from gptoss_mlx.cli import main

    with simulated_metal():
        main()
    sys.exit()
