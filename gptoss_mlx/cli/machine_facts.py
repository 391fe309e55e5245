"""Facts about this machine, as names and values, a line each: for `gptoss-mlx doctor` and for reports.

No fact names a person or a machine, but for the user's folder in paths: see `without_user`.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Iterator
from importlib.metadata import distributions
from pathlib import Path

import mlx.core as mx

from .. import device, kernels
from ..files import free_disk
from ..memory.plan import MemoryPlan
from ..memory.system import cgroup_limit, proc_bytes, size_text, total
from ..model.checkpoint import Checkpoint
from ..model.model_store import models_folder

PACKAGES = re.compile("mlx|numpy|safetensors|tokenizers")  # names begin so
GPU_PROPERTIES = ("ioreg", "-r", "-d", "1", "-w", "0", "-c", "AGXAccelerator")
COLUMN = 24  # of values: names of facts and of the self-test's checks are shorter
NARROW = 64  # columns of a terminal, with fewer of which a column for values would be too narrow
SECONDS = 5  # for a program of the system to answer


def facts() -> Iterator[tuple[str, str]]:
    """What decides how models run here."""
    runtime = device.runtime()
    yield "gptoss-mlx", f"{runtime.version}, MLX {runtime.mlx}, Python {platform.python_version()}"
    yield "system", _system()
    yield "device", f"{runtime.device}, {runtime.name}"
    if native := kernels.native():
        others = [name for name in native.available_kernels() if name != native.kernels_in_use()]
        also = f" (also: {', '.join(others)})" if others else ""
        yield "kernels", f"on, {native.kernels_in_use()}{also}, {native.threads()} threads"
    else:
        yield "kernels", f"off: {kernels.why_not_native()}"
        if step := kernels.how_to_have_native():
            yield "to enable them", step
    yield from _memory()


def details() -> Iterator[tuple[str, str]]:
    """What else MLX's speed and limits depend on, for a report."""
    from ..bench.machine import Watch, describe

    described, power = describe(), Watch().conditions().power
    yield "processor", f"{described.processor}, {described.cores} cores"
    if cores := re.search(r'"gpu-core-count" = (\d+)', _answer(*GPU_PROPERTIES)):
        yield "GPU cores", cores[1]
    names = {each.name: each.version for each in distributions() if PACKAGES.match(each.name)}
    yield "packages", ", ".join(f"{name} {version}" for name, version in sorted(names.items()))
    if described.commit:
        yield "commit", described.commit
    # Numbers alone: other variables of MLX hold paths.
    settings = {name: value for name, value in os.environ.items() if name.startswith("MLX_") and value.isdigit()}
    yield "MLX's environment", ", ".join(f"{name}={value}" for name, value in sorted(settings.items())) or "as it is"
    yield "power", power or "not known"


def in_use(plan: MemoryPlan) -> Iterator[tuple[str, str]]:
    """What a model took that ran by this plan, in this process."""
    mapped = Checkpoint.open(Path(plan.model)).is_mapped
    yield "files", "mapped without a copy" if mapped else "copied into memory"
    peak, kept = size_text(mx.get_peak_memory()), size_text(mx.get_cache_memory())
    yield "memory of MLX", f"at most {peak}, and {kept} kept for reuse; planned {size_text(planned(plan))}"


def planned(plan: MemoryPlan) -> int:
    """Bytes that MLX may have, by a plan; without a GPU, those of all."""
    return plan.on_gpu if plan.device.gpu else plan.total


def models() -> tuple[str, str]:
    return "models", f"{models_folder()}, {size_text(free_disk(models_folder()))} free"


def as_lines(name: str, value: str, width: int | None = None) -> str:
    """A line; where a terminal has `width` columns, as many as keep the values in a column of their own, or, in a
    narrow one, below the names."""
    start, indent = f"{name:{COLUMN}}", " " * COLUMN
    if width is None:
        return start + value
    if width < NARROW:
        return f"{name}\n{_wrapped(value, width, '  ', '  ')}"
    return _wrapped(value, width, start, indent)


def _wrapped(value: str, width: int, start: str, indent: str) -> str:
    """With paths in one piece, to be copied."""
    return textwrap.fill(
        value, width, initial_indent=start, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def as_block(pairs: Iterable[tuple[str, str]]) -> str:
    """Lines of names and values, as a block of code in Markdown for others to read."""
    return "\n".join(["```text", *(without_user(as_lines(*pair)) for pair in pairs), "```"])


def without_user(text: str) -> str:
    """Text in which paths do not name the user."""
    folder = os.path.expanduser("~/")
    return text if folder == "/" else text.replace(folder, "~/")


def _system() -> str:
    if sys.platform != "darwin":
        return f"{platform.system()} {platform.release()} on {platform.machine()}"
    translated = _answer("sysctl", "-n", "sysctl.proc_translated").strip() == "1"
    return f"macOS {platform.mac_ver()[0]}, Python for {platform.machine()}{' under Rosetta' if translated else ''}"


def _answer(*command: str) -> str:
    """What a program of the system prints; nothing where there is no such program, or it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def _memory() -> Iterator[tuple[str, str]]:
    if meminfo := proc_bytes("meminfo"):
        yield "memory", f"{size_text(meminfo['MemTotal'])}, {size_text(meminfo['MemAvailable'])} available"
    elif sys.platform == "darwin":
        yield "memory", size_text(total())
    if (limit := cgroup_limit()) is not None:
        yield "memory limit", f"{size_text(limit)}, set by the control group"
    if (gpu := device.gpu()) and gpu.is_unified and gpu.limit:
        limits = ((gpu.limit, "in total"), (gpu.max_buffer, "per buffer"))
        yield "GPU limit", ", ".join(f"{size_text(size)} {what}" for size, what in limits if size is not None)
