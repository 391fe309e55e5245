"""The machine that a benchmark runs on, and signs that it was not idle or not at its full speed meanwhile.

Everything is asked of the system as any user may, and what it does not say is None. Nothing here names a person or a
machine: no host, no user, no path. How speeds are measured is `measure`'s affair; energy has a module of its own.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from .. import device
from ..files import read_number, read_text
from ..memory.system import ProcessMemory, forget_peak, process_memory, total
from ..untrusted import parse_json
from .background import Background
from .energy import power_source
from .nvidia import nvidia_gpu
from .results import Conditions, Machine

PACKAGE = Path(__file__).parents[1]
ROOT = Path("/")
SECONDS = 5  # for another program to answer
SAMPLE_SECONDS = 1  # a reading takes up to half a millisecond of a core


def describe() -> Machine:
    gpu, runtime, on_gpu = nvidia_gpu(), device.runtime(), device.is_gpu()
    versions = {"gptoss-mlx": runtime.version, "mlx": runtime.mlx, "python": platform.python_version()}
    return Machine(
        system=_system(),
        processor=processor(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory=total(),
        device=runtime.name if on_gpu else "CPU",
        kernels=None if on_gpu else runtime.kernels,
        versions=versions | ({"NVIDIA driver": gpu.driver} if gpu and gpu.driver else {}),
        commit=commit(),
    )


def _system() -> str:
    if sys.platform == "darwin":
        return f"macOS {platform.mac_ver()[0]} {platform.machine()}"
    release = re.match(r"\d+\.\d+", platform.release())  # what follows is whatever its builder wrote
    return f"{platform.system()} {release[0] if release else ''} {platform.machine()}"


def processor() -> str:
    """The processor's name, or the names of its kinds of cores; where nobody knows it, the architecture's."""
    if sys.platform == "darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.machine()
    names = re.findall(r"^ *Model name: *(.+)$", _output("lscpu") or "", re.MULTILINE)
    return ", ".join(names) or platform.machine()


def commit(package: Path = PACKAGE) -> str | None:
    """The commit of the checkout that `package` is in, with "-dirty" where files were changed, or the one that pip
    noted when it installed from a repository."""
    checkout = package.parent
    # Not any repository around an installed package: ours, and no search further up.
    ours = re.search('^name = "gptoss-mlx"$', read_text(checkout / "pyproject.toml") or "", re.MULTILINE)
    if ours and (checkout / ".git").exists():
        git = "git", "--no-optional-locks", f"--git-dir={checkout / '.git'}", f"--work-tree={checkout}"
        return _output(*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    try:
        noted = parse_json((distribution("gptoss-mlx").read_text("direct_url.json") or "{}").encode())
        found = noted.get("vcs_info", {}).get("commit_id")
    except (PackageNotFoundError, OSError, ValueError, AttributeError):
        return None
    return found if isinstance(found, str) and re.fullmatch("[0-9a-f]{7,64}", found) else None


def _output(*command: str) -> str | None:
    """The output of a program; None if there is no such program, it fails, or takes too long."""
    # A hook of git, which may have started this process, points git to its own repository. What is read is in English.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")} | {"LC_ALL": "C"}
    try:
        done = subprocess.run(
            command,
            check=True,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=environment,
            timeout=SECONDS,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


class Watch:
    """Made before something is measured; says afterwards under which conditions that was."""

    def __init__(self, root: Path = ROOT):
        self._root = root
        self._gpu = nvidia_gpu()
        self._load = os.getloadavg()[0]
        self._times, self._own = _cpu_times(root), _own_seconds()
        self._throttled = _throttle_count(root)

    def conditions(self) -> Conditions:
        """Right after the work: clocks fall soon."""
        times = [now - then for then, now in zip(self._times, _cpu_times(self._root), strict=False)]
        passed = max(sum(times), 0)  # 0 where the system is silent
        throttled = _throttle_count(self._root)
        return Conditions(
            load_average=self._load,
            others=_busy_with_others(times, _own_seconds() - self._own) / passed if passed else None,
            stolen=times[7] / passed if passed else None,
            throttled=None if throttled is None or self._throttled is None else throttled - self._throttled,
            clock=_clock(self._root),
            power=power_source(self._root / "sys") or _mac_power(),
            gpu_slowed=self._gpu.slowed if self._gpu else None,
        )


def _cpu_times(root: Path) -> list[int]:
    """Ticks of all cores since the start: user, nice, system, idle, iowait, irq, softirq, steal (proc(5)); what guests
    take is in the first two. Empty where the system does not say."""
    found = re.match(r"cpu((?: +\d+){8})", read_text(root / "proc/stat") or "")
    return [int(field) for field in found[1].split()] if found else []


def _own_seconds() -> float:
    """Seconds of the cores that this process took, and its children that have ended."""
    return sum(os.times()[:4])


def _busy_with_others(times: list[int], own: float) -> float:
    """Ticks in which other programs ran, or the system for them."""
    user, nice, system, _, _, interrupts, soft_interrupts, _ = times
    return max(user + nice + system + interrupts + soft_interrupts - own * os.sysconf("SC_CLK_TCK"), 0)


def _throttle_count(root: Path) -> int | None:
    counts = [read_number(path) for path in root.glob("sys/devices/system/cpu/cpu*/thermal_throttle/*_throttle_count")]
    return sum(filter(None, counts)) if counts else None


def _clock(root: Path) -> float | None:
    """The clock of the fastest core, as a share of its highest: other cores may have been idle."""
    shares = []
    for folder in root.glob("sys/devices/system/cpu/cpu*/cpufreq"):
        now, highest = read_number(folder / "scaling_cur_freq"), read_number(folder / "cpuinfo_max_freq")
        if now and highest:
            shares.append(now / highest)
    return max(shares, default=None)


def _mac_power() -> str | None:
    """Not run on a Mac."""
    answer = _output("pmset", "-g", "batt") if sys.platform == "darwin" else None
    found = re.search("drawing from '(AC|Battery) Power'", answer or "")
    return {"AC": "mains", "Battery": "battery"}[found[1]] if found else None


class MemorySampler(Background):
    """While open, reads this process's memory once a second, on a thread."""

    def __init__(self) -> None:
        super().__init__(self._sample, SAMPLE_SECONDS)
        self._max: ProcessMemory | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> MemorySampler:
        forget_peak()
        self._sample()
        super().__enter__()
        return self

    def max(self) -> ProcessMemory | None:
        """The maximum of each kind until now, not always at the same time; None where the system is silent."""
        self._sample()
        return self._max

    @contextmanager
    def apart(self) -> Iterator[None]:
        """While open, nothing is read: what is in memory belongs to the measurement."""
        self._sample()
        with self._lock:
            try:
                yield
            finally:
                forget_peak()

    def _sample(self) -> None:
        with self._lock:
            if now := process_memory():
                before = self._max or now
                self._max = ProcessMemory(
                    anonymous=max(before.anonymous, now.anonymous),
                    mapped=max(before.mapped, now.mapped),
                    peak=max(before.peak, now.peak),
                    gpu=None if now.gpu is None else max(before.gpu or 0, now.gpu),
                )
