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


def processor(root: Path = ROOT) -> str:
    """The processor's name, or what the system knows instead: on ARM, Linux knows boards, and numbers of designs."""
    if sys.platform == "darwin" and (name := _output("sysctl", "-n", "machdep.cpu.brand_string")):
        return name
    fields: dict[str, list[str]] = {}
    for line in (read_text(root / "proc/cpuinfo") or "").splitlines():
        name, _, value = line.partition(":")
        values = fields.setdefault(name.strip(), [])
        if value.strip() not in values:
            values.append(value.strip())
    if "model name" in fields:
        return fields["model name"][0]
    if board := read_text(root / "proc/device-tree/model"):
        return board
    if "Hardware" in fields:
        return fields["Hardware"][0]
    if "CPU part" in fields:
        return f"implementer {', '.join(fields.get('CPU implementer', ['?']))}, parts {', '.join(fields['CPU part'])}"
    return platform.machine()


def commit(package: Path = PACKAGE) -> str | None:
    """The commit of the checkout that `package` is in, with "-dirty" where files were changed, or the one that pip
    noted when it installed from a repository."""
    checkout = package.parent
    # Not any repository around an installed package: ours, and no search further up.
    ours = re.search('^name = "gptoss-mlx"$', read_text(checkout / "pyproject.toml") or "", re.MULTILINE)
    if ours and (checkout / ".git").exists():
        return _git_commit(checkout)
    try:
        noted = parse_json((distribution("gptoss-mlx").read_text("direct_url.json") or "{}").encode())
        found = noted.get("vcs_info", {}).get("commit_id")
    except (PackageNotFoundError, OSError, ValueError, AttributeError):
        return None
    return found if isinstance(found, str) and re.fullmatch("[0-9a-f]{7,64}", found) else None


def _git_commit(checkout: Path) -> str | None:
    status = _output(
        *("git", "--no-optional-locks", f"--git-dir={checkout / '.git'}", f"--work-tree={checkout}"),
        *("status", "--porcelain=v2", "--branch", "--untracked-files=no"),
    )
    if status is None or not (found := re.search("^# branch.oid ([0-9a-f]+)$", status, re.MULTILINE)):
        return None
    changed = any(not line.startswith("#") for line in status.splitlines())
    return found[1] + ("-dirty" if changed else "")


def _output(*command: str) -> str | None:
    """The output of a program; None if there is no such program, it fails, or takes too long."""
    # A hook of git, which may have started this process, points git to its own repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=environment,
            timeout=SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


class Watch:
    """Made before something is measured; says afterwards under which conditions that was."""

    def __init__(self, root: Path = ROOT):
        self._root = root
        self._gpu = nvidia_gpu()
        self._load = _load_average()
        self._times, self._own = _cpu_times(root), _own_seconds()
        self._throttled = _throttle_count(root)

    def conditions(self) -> Conditions:
        """Right after the work: clocks fall soon."""
        times = _passed(self._times, _cpu_times(self._root))
        return Conditions(
            load_average=self._load,
            others=_others(times, _own_seconds() - self._own) if times else None,
            stolen=times[7] / sum(times) if times else None,
            throttled=_difference(self._throttled, _throttle_count(self._root)),
            clock=_clock(self._root) or _mac_speed_limit(),
            power=power_source(self._root / "sys") or _mac_power(),
            gpu_slowed=self._gpu.slowed if self._gpu else None,
        )


def _load_average() -> float | None:
    try:
        return os.getloadavg()[0]
    except OSError:
        return None


def _cpu_times(root: Path) -> list[int] | None:
    """Ticks of all cores since the start: user, nice, system, idle, iowait, irq, softirq, steal (proc(5)); what guests
    take is in the first two."""
    lines = (read_text(root / "proc/stat") or "").splitlines()
    try:
        times = [int(field) for field in lines[0].split()[1:9]]
    except (IndexError, ValueError):
        return None
    return times if len(times) == 8 else None


def _passed(before: list[int] | None, after: list[int] | None) -> list[int] | None:
    """The ticks between two readings; None where the system is silent, or too little time has passed."""
    if before is None or after is None or sum(after) <= sum(before):
        return None
    return [now - then for then, now in zip(before, after, strict=True)]


def _own_seconds() -> float:
    """Seconds of the cores that this process took, and its children that have ended."""
    return sum(os.times()[:4])


def _others(times: list[int], own: float) -> float:
    user, nice, system, _, _, interrupts, soft_interrupts, _ = times
    busy = user + nice + system + interrupts + soft_interrupts
    return max(busy - own * os.sysconf("SC_CLK_TCK"), 0) / sum(times)


def _throttle_count(root: Path) -> int | None:
    counts = [read_number(path) for path in root.glob("sys/devices/system/cpu/cpu*/thermal_throttle/*_throttle_count")]
    known = [count for count in counts if count is not None]
    return sum(known) if known and len(known) == len(counts) else None


def _difference(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else after - before


def _clock(root: Path) -> float | None:
    """The clock of the fastest core, as a share of its highest: other cores may have been idle."""
    shares = []
    for folder in root.glob("sys/devices/system/cpu/cpu*/cpufreq"):
        now, highest = read_number(folder / "scaling_cur_freq"), read_number(folder / "cpuinfo_max_freq")
        if now and highest:
            shares.append(now / highest)
    return max(shares, default=None)


def _mac_speed_limit() -> float | None:
    """Not run on a Mac. Apple's own processors report no limit."""
    found = re.search(r"CPU_Speed_Limit\s*=\s*(\d+)", _pmset("therm"))
    return int(found[1]) / 100 if found else None


def _mac_power() -> str | None:
    """Not run on a Mac."""
    found = re.search("drawing from '(AC|Battery) Power'", _pmset("batt"))
    return {"AC": "mains", "Battery": "battery"}[found[1]] if found else None


def _pmset(what: str) -> str:
    return _output("pmset", "-g", what) or "" if sys.platform == "darwin" else ""


class MemorySampler:
    """While open, reads this process's memory once a second, on a thread."""

    def __init__(self) -> None:
        self._max: ProcessMemory | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> MemorySampler:
        forget_peak()
        self._sample()
        self._background = Background(self._sample, SAMPLE_SECONDS)
        return self

    def __exit__(self, *error: object) -> None:
        self._background.close()

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
