"""The energy that a measurement took, where the system says so without root.

Each source says what it covers: none of them is what a meter at the socket would show. Whatever cannot be read, or
stands at zero, is no source; nothing is estimated from times or from a processor's ratings.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from ..device import is_gpu
from ..files import read_number, read_text
from ..memory.macos import resource_usage
from .background import Background
from .nvidia import NvidiaGpu, nvidia_gpu

SYSTEM = Path("/sys")
SECONDS = 1  # between two readings
POWERED = ("Mains", "USB", "Wireless")  # types of supplies that are no batteries

Step = Callable[[], "float | None"]
"""Returns the joules since the last call; None when the source has become silent."""


class Meter(Background):
    """Counts from the moment that it is made; while it is open, also on a thread, so that no change is missed."""

    def __init__(self, covers: str, step: Step):
        super().__init__(self.joules, SECONDS)
        self.covers = covers
        self._step = step
        self._total: float | None = 0.0
        self._lock = threading.Lock()

    def joules(self) -> float | None:
        """The joules until now. None from the moment that the source became silent, as when a charger is plugged in."""
        with self._lock:
            if self._total is not None:
                more = self._step()
                self._total = None if more is None else self._total + more
            return self._total


def meter() -> Meter | None:
    """A meter of the first source that there is: what computes, else the whole machine."""
    gpu = nvidia_gpu()
    return (of_gpu(gpu) if gpu else None) or of_packages() or of_battery() or of_process()


def of_gpu(gpu: NvidiaGpu) -> Meter | None:
    step = _counted(lambda: gpu.millijoules, 1e-3)
    return Meter("GPU board", step) if step else None


def of_packages(system: Path = SYSTEM) -> Meter | None:
    """The counters of processors from Intel and AMD, which many systems let only root read.

    In the kernel's Documentation/power/powercap. A package contains its cores and what graphics it has; the memory
    beside it is a zone of its own, where there is one; "psys" would count the package again.
    """
    names = {zone: read_text(zone / "name") or "" for zone in sorted(system.glob("class/powercap/intel-rapl:*"))}
    packages = [zone for zone, name in names.items() if name.startswith("package")]
    memory = [zone for zone, name in names.items() if name == "dram"]
    steps = [step for zone in packages + memory if (step := _zone(zone))]
    if not packages or len(steps) < len(packages + memory):
        return None
    return Meter("CPU package and memory" if memory else "CPU package", lambda: sum_if_known(step() for step in steps))


def of_battery(system: Path = SYSTEM) -> Meter | None:
    """Batteries, while nothing else gives power. Their reading changes every few seconds, of some every half minute:
    too slowly for short runs."""

    def watts() -> float | None:
        if power_source(system) != "battery":
            return None
        return sum_if_known(
            _watts(supply) for supply in _supplies(system) if read_text(supply / "status") == "Discharging"
        )

    step = _steps(watts, lambda before, now, seconds: (before + now) / 2 * seconds)  # as if it changed evenly
    return Meter("whole machine, from the battery", step) if step else None


def of_process() -> Meter | None:
    """macOS's own estimate, where nothing is computed on a GPU, whose part it does not have. Not run on a Mac."""
    step = None if is_gpu() else _counted(lambda: getattr(resource_usage(), "ri_energy_nj", None), 1e-9)
    return Meter("this process on the CPU", step) if step else None


def power_source(system: Path = SYSTEM) -> str | None:
    """Linux's "mains" or "battery" (Documentation/ABI/testing/sysfs-class-power); None where it does not say."""
    supplies = _supplies(system)
    states = {read_text(supply / "status") for supply in supplies}
    if any(read_text(supply / "type") in POWERED and read_number(supply / "online") for supply in supplies):
        return "mains"
    if "Discharging" in states:
        return "battery"
    return "mains" if states & {"Charging", "Full", "Not charging"} else None


def _supplies(system: Path) -> list[Path]:
    """Power supplies, without the batteries of mice and keyboards."""
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
    """Steps of a counter of `unit` joules, which begins again at 0 after `range_`. None where none counts."""

    def joules(before: float, now: float, seconds: float) -> float | None:
        went = now - before if now >= before else now - before + (range_ or 0)
        return went * unit if went >= 0 else None

    return _steps(read, joules)


def _steps(read: Callable[[], float | None], joules: Callable[[float, float, float], float | None]) -> Step | None:
    """Steps of a source that `read` reads; `joules` gets two readings and the seconds between them. None where it
    reports nothing."""
    last, read_at = read(), time.monotonic()
    if not last:
        return None

    def step() -> float | None:
        nonlocal last, read_at
        before, since = last, read_at
        last, read_at = read(), time.monotonic()
        return None if before is None or last is None else joules(before, last, read_at - since)

    return step


def sum_if_known(parts: Iterable[float | None]) -> float | None:
    """None where a part is not known."""
    known = list(parts)
    return None if None in known else sum(filter(None, known))
