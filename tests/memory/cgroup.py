"""Run a command under a memory limit that the kernel enforces: a memory control group of its own, v1 or v2."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
V1, V2 = ROOT / "memory", ROOT


@dataclass(frozen=True)
class Limited:
    """What became of the command. `peak` is the most that the group held, page cache included."""

    returncode: int
    stdout: str
    stderr: str
    peak: int


def why_not() -> str | None:
    """The reason why no memory group can be made here, if so."""
    try:
        group = _make(2**30)
    except OSError as error:
        return f"no memory control group can be made: {error}"
    group.rmdir()
    return None


def run_limited(command: Sequence[str], limit: int, **more) -> Limited:
    """Run to the end with at most `limit` bytes; the kernel kills what needs more and cannot have it."""
    group = _make(limit)
    try:
        process = subprocess.run(
            command,
            capture_output=True,
            text=True,
            preexec_fn=lambda: (group / "cgroup.procs").write_text(str(os.getpid())),
            **more,
        )
        peaks = (group / name for name in ("memory.max_usage_in_bytes", "memory.peak"))
        peak = max((int(path.read_text()) for path in peaks if path.exists()), default=0)  # older kernels tell none
        return Limited(process.returncode, process.stdout, process.stderr, peak)
    finally:
        group.rmdir()


def _make(limit: int) -> Path:
    v1 = (V1 / "memory.limit_in_bytes").exists()
    group = (V1 if v1 else V2) / f"gptoss-mlx-{uuid.uuid4().hex[:8]}"
    group.mkdir()
    try:
        (group / ("memory.limit_in_bytes" if v1 else "memory.max")).write_text(str(limit))
    except OSError:  # v2 without the memory controller
        group.rmdir()
        raise
    return group
