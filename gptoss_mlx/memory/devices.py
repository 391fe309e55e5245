"""The devices for which plans are made: this machine, and the profiles of devices.json.

The bandwidths of Macs are those that Apple publishes, with the chips that are sold with so much memory; those of phones
are those of their kind of memory, 64 bits wide. Knows how much of what a system reports a plan may use; leaves the use
to `plan`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from .. import kernels
from ..device import BACKENDS, Backend, backend, gpu
from ..errors import GptOssError
from .system import available, parse_size, total

DEVICES = Path(__file__).with_name("devices.json")

USABLE = 0.97  # of available memory, the system's or that of a GPU of its own; the rest is headroom
# Of the working set that Metal recommends. MLX counts every mapped window that it adopts as in use, and from 95 % on
# its allocator empties its cache whenever that has no buffer of the right size.
METAL_USABLE = 0.93


@dataclass(frozen=True)
class Device:
    """A device for which a plan is made."""

    name: str
    memory: int
    """Bytes for this process, GPU included."""
    gpu: int | None
    """The maximum of bytes that MLX may have on a GPU; None without one."""
    backend: str
    """A name in `device.BACKENDS`."""
    cpu_experts: bool = False
    """Whether, beside a GPU, the CPU can compute experts."""
    bandwidths: Mapping[str, float] = field(default_factory=dict)
    """Bytes per second of the memory, by the name of a chip or a kind of memory; empty if it is not known."""

    @property
    def traits(self) -> Backend:
        return BACKENDS[self.backend]

    def within(self, memory: int) -> Device:
        """The same device with a limit for this process."""
        return replace(self, memory=memory, gpu=self.gpu and min(memory, self.gpu))

    @classmethod
    def here(cls) -> Device:
        """This machine, with the memory that is available now."""
        if (here := gpu()) is None:
            return cls("this machine", int(USABLE * (available() or _beside_the_system())), None, backend().name)
        if not here.is_unified:
            limit = int(USABLE * (here.limit or total()))
            return cls("this machine", limit, limit, backend().name)
        limit = int(METAL_USABLE * (here.limit or total()))
        return cls("this machine", _beside_the_system(), limit, "gpu", cpu_experts=kernels.native() is not None)

    @classmethod
    def named(cls, name: str) -> Device:
        """A profile of devices.json. Raises GptOssError."""
        profiles = json.loads(DEVICES.read_text(encoding="utf-8"))
        if name not in profiles:
            raise GptOssError(f"there is no device {name!r}: choose from {', '.join(profiles)}")
        profile = profiles[name]
        memory, working_set = parse_size(profile["memory"]), profile["working_set"]
        bandwidths = {chip: 1e9 * rate for chip, rate in profile["bandwidth"].items()}
        if working_set is None:
            return cls(name, memory, None, "kernels", bandwidths=bandwidths)
        limit = int(METAL_USABLE * parse_size(working_set))
        return cls(name, memory, limit, "gpu", cpu_experts=True, bandwidths=bandwidths)


def _beside_the_system() -> int:
    """RAM without the system and other programs: a guess, for systems that do not report it."""
    return total() - max(3 * 2**30, total() // 5)
