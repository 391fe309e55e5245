"""The memory that this process may use, and uses, as the system reports it: RAM, control groups, its own pages.

Also sizes in bytes as people write them. Knows nothing of models.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..device import forget_gpu_peak, own_gpu_memory_peak
from ..errors import GptOssError
from ..files import read_number
from .macos import resource_usage

CGROUPS = Path("/sys/fs/cgroup")
NO_LIMIT = 2**60  # v1 writes "no limit" as the largest multiple of a page
MAX_SIZE = 2**50  # no machine has a pebibyte

_UNITS = {"": 1} | {f"{prefix}{i}": base**power for base, i in ((1000, ""), (1024, "i"))
                    for power, prefix in enumerate("kmgt", 1)}  # fmt: skip

_PROC_LINE = re.compile(rb"^(\S+):\s+(\d+) kB$", re.MULTILINE)


def parse_size(text: str) -> int:
    """Bytes of "16GB" (1e9), "16GiB" (2^30), "900 MB", "17179869184". Raises GptOssError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?\s*", text.lower())
    if not match or match[2] not in _UNITS:
        raise GptOssError(f"{text!r} is not an amount of memory: write 16GB, 12GiB or 900MB")
    size = float(match[1]) * _UNITS[match[2]]
    if not 2**20 <= size <= MAX_SIZE:
        raise GptOssError(f"{text!r} is not an amount of memory that a machine has: give 1MiB to 1024TiB")
    return int(size)


def size_text(count: int) -> str:
    """Bytes in a unit that leaves digits before the point: "12.10 GB", "900.0 MB", "4 kB", "17 bytes"."""
    for unit, size, digits in (("GB", 1e9, 2), ("MB", 1e6, 1), ("kB", 1e3, 1)):
        if count >= size:
            return f"{count / size:.{digits}f} {unit}"
    return f"{count} bytes"


def proc_bytes(name: str) -> dict[str, int]:
    """Name -> bytes, from the lines `Name: N kB` of /proc/`name`; empty if there is no such file."""
    try:
        # Without a buffer: a measurement calls this many times, and must not be slowed down.
        with open(f"/proc/{name}", "rb", buffering=0) as file:
            text = file.read()
    except OSError:
        return {}
    return {field.decode(): int(value) * 1024 for field, value in _PROC_LINE.findall(text)}


def total() -> int:
    """Bytes of RAM of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def available() -> int | None:
    """Bytes that this process could use without swapping, with those that it uses now; None if the system does not
    report that."""
    free = proc_bytes("meminfo").get("MemAvailable")
    if free is None:
        return None
    own = proc_bytes("self/status").get("RssAnon", 0)
    limits = [limit - max(used - own, 0) for limit, used in _cgroups()]
    return min([free + own, *limits])


@dataclass(frozen=True)
class ProcessMemory:
    """Bytes of this process in RAM."""

    anonymous: int
    mapped: int
    """Pages of files, which the system can drop and read again unless the files are in memory themselves (tmpfs)."""
    peak: int
    """The maximum of both together: since `forget_peak` if the system can forget it, else now."""
    gpu: int | None
    """The maximum that MLX has had, since `forget_peak`, on a GPU with memory of its own; None without one."""


def process_memory() -> ProcessMemory | None:
    """The memory of this process now; None if the system does not report it.

    On macOS (not run there) the anonymous part is the physical footprint, with compressed and GPU memory.
    """
    linux = proc_bytes("self/status")
    if linux.keys() >= {"RssAnon", "RssFile", "RssShmem", "VmHWM"}:
        return ProcessMemory(
            linux["RssAnon"], linux["RssFile"] + linux["RssShmem"], linux["VmHWM"], own_gpu_memory_peak()
        )
    if macos := resource_usage():
        mapped = max(macos.ri_resident_size - macos.ri_phys_footprint, 0)
        return ProcessMemory(macos.ri_phys_footprint, mapped, macos.ri_phys_footprint + mapped, own_gpu_memory_peak())
    return None


def forget_peak() -> None:
    """Start new peaks, if the system can do that."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    forget_gpu_peak()


def cgroup_limit() -> int | None:
    """The lowest memory limit of this process's control groups, v1 or v2, in bytes; None without a limit."""
    return min((limit for limit, _ in _cgroups()), default=None)


def _cgroups() -> list[tuple[int, int]]:
    """The limit and the anonymous memory in use, in bytes, of each control group of this process with a limit."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, limit_file, used_name = CGROUPS, "memory.max", "anon"
        elif "memory" in controllers.split(","):
            root, limit_file, used_name = CGROUPS / "memory", "memory.limit_in_bytes", "total_rss"
        else:
            continue
        # In a container the path can begin outside the mounted tree; its own group is then the root.
        own = root / path.lstrip("/")
        for group in {root, *(each for each in (own, *own.parents) if root in each.parents)}:
            if (limit := read_number(group / limit_file)) is not None and limit < NO_LIMIT:
                found.append((limit, _statistic(group / "memory.stat", used_name)))
    return found


def _statistic(path: Path, name: str) -> int:
    try:
        pairs = (line.split() for line in path.read_text().splitlines())
        return next((int(value) for key, value in pairs if key == name), 0)
    except (OSError, ValueError):
        return 0
