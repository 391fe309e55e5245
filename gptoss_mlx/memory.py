"""What Linux says about memory under /proc; other systems say nothing here."""

from __future__ import annotations

from pathlib import Path


def proc_bytes(name: str) -> dict[str, int]:
    """Bytes, by name, from the lines `Name: N kB` of /proc/`name`; empty where there is no such file."""
    try:
        lines = Path("/proc", name).read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in lines if line.endswith("kB"))
    return {field: int(value.split()[0]) * 1024 for field, value in pairs}
