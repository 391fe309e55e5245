"""The energy that a measurement took, where the system tells it without root.

Each source says what it covers: none of them is what a meter at the socket would show. Whatever cannot be read, or
stands at zero, is no source; nothing is estimated from times or from a processor's ratings.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from ..device import is_gpu
from ..files import read_number, read_text
from ..memory.macos import resource_usage
from .background import Background
from .nvidia import NvidiaGpu, nvidia_gpu

SYSTEM = Path("/sys")
SECONDS = 1  # between two readings
POWERED = ("Mains", "USB", "Wireless")  # types of what is not a battery

Step = Callable[[], "float | None"]
"""Gives the joules since it was called last; None when the source tells no more."""


class Meter:
    """Counts from the moment that it is made, on a thread of its own, until it is closed."""

    def __init__(self, covers: str, step: Step):
        self.covers = covers
        self._step = step
        self._total: float | None = 0.0
        self._lock = threading.Lock()
        self._background = Background(self.joules, SECONDS)

    def joules(self) -> float | None:
        """All until now. None from the moment that the source told no more, as when a charger is plugged in."""
        with self._lock:
            if self._total is not None:
                more = self._step()
                self._total = None if more is None else self._total + more
            return self._total

    def close(self) -> None:
        self._background.close()

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def meter() -> Meter | None:
    """Of the first source that there is: what computes, else the whole machine."""
    gpu = nvidia_gpu()
    sources = (lambda: gpu and of_gpu(gpu), of_packages, of_battery, of_process)
    return next((found for source in sources if (found := source())), None)


def of_gpu(gpu: NvidiaGpu) -> Meter | None:
    step = _counted(lambda: gpu.millijoules, 1e-3)
    return step and Meter("GPU board", step)


def of_packages(system: Path = SYSTEM) -> Meter | None:
    """The counters of processors from Intel and AMD, which many systems let only root read.

    In the kernel's Documentation/power/powercap. A package contains its cores and what graphics it has; the memory
    beside it is a zone of its own, where there is one; "psys" would count the package again.
    """
    names = {zone: read_text(zone / "name") or "" for zone in sorted(system.glob("class/powercap/intel-rapl:*"))}
    packages = [_zone(zone) for zone, name in names.items() if name.startswith("package")]
    memory = [_zone(zone) for zone, name in names.items() if name == "dram"]
    steps = packages + memory
    if not packages or None in steps:
        return None
    return Meter("CPU package and memory" if memory else "CPU package", lambda: _sum([step() for step in steps]))


def of_battery(system: Path = SYSTEM) -> Meter | None:
    """Only while nothing but batteries gives power. They tell a new figure every few seconds, some every half minute:
    short runs cannot be told apart."""

    def watts() -> float | None:
        if power_source(system) != "battery":
            return None
        return _sum([_watts(supply) for supply in _supplies(system) if read_text(supply / "status") == "Discharging"])

    step = _integrated(watts)
    return step and Meter("whole machine, from the battery", step)


def of_process() -> Meter | None:
    """macOS's own estimate, where nothing is computed on a GPU, whose part it does not have. Not run on a Mac."""
    if is_gpu():
        return None

    def nanojoules() -> int | None:
        usage = resource_usage()
        return usage and usage.ri_energy_nj

    step = _counted(nanojoules, 1e-9)
    return step and Meter("this process on the CPU", step)


def power_source(system: Path = SYSTEM) -> str | None:
    """Linux's "mains" or "battery" (Documentation/ABI/testing/sysfs-class-power); None where it does not tell."""
    supplies = _supplies(system)
    states = {read_text(supply / "status") for supply in supplies}
    if any(read_text(supply / "type") in POWERED and read_number(supply / "online") for supply in supplies):
        return "mains"
    if "Discharging" in states:
        return "battery"
    return "mains" if states & {"Charging", "Full", "Not charging"} else None


def _supplies(system: Path) -> list[Path]:
    """Without the batteries of mice and keyboards."""
    found = sorted(system.glob("class/power_supply/*"))
    return [supply for supply in found if read_text(supply / "scope") != "Device"]


def _zone(path: Path) -> Step | None:
    return _counted(lambda: read_number(path / "energy_uj"), 1e-6, read_number(path / "max_energy_range_uj"))


def _watts(supply: Path) -> float | None:
    if (power := read_number(supply / "power_now")) is not None:
        return abs(power) * 1e-6
    voltage, current = read_number(supply / "voltage_now"), read_number(supply / "current_now")
    return None if voltage is None or current is None else voltage * 1e-6 * abs(current) * 1e-6


def _counted(read: Callable[[], int | None], unit: float, range_: int | None = None) -> Step | None:
    """Of a counter of `unit` joules, which begins again at 0 after `range_`. None where there is none that counts."""
    last = read()
    if not last:
        return None

    def step() -> float | None:
        nonlocal last
        if (now := read()) is None:
            return None
        went = now - last
        if went < 0:
            went += range_ or 0
        last = now
        return went * unit if went >= 0 else None

    return step


def _integrated(watts: Callable[[], float | None]) -> Step | None:
    """Of a power, as if it changed evenly between two readings. None where none is told."""
    last, read_at = watts(), time.monotonic()
    if not last:
        return None

    def step() -> float | None:
        nonlocal last, read_at
        now, at = watts(), time.monotonic()
        if now is None:
            return None
        joules = (last + now) / 2 * (at - read_at)
        last, read_at = now, at
        return joules

    return step


def _sum(parts: list[float | None]) -> float | None:
    return None if None in parts else sum(parts)
