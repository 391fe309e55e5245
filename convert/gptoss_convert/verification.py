"""A converted folder against the checksums that its conversion wrote: every byte of every shard is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gptoss_mlx.errors import GptOssError, printable
from gptoss_mlx.files import sha256
from gptoss_mlx.model.recognition import model_folder, open_converted
from gptoss_mlx.provenance import PROVENANCE, provenance_of


def verify(folder: Path, on_progress: Callable[[int, int], None] = lambda done, total: None) -> list[str]:
    """Check every shard; returns a printable line for each fault. Raises GptOssError where there are no checksums to
    compare with."""
    folder = model_folder(folder)
    if (made := provenance_of(folder)) is None:
        open_converted(folder)  # says what else it is
    wanted = (made or {}).get("sha256")
    if not isinstance(wanted, dict) or not wanted or not all(isinstance(v, str) for v in wanted.values()):
        raise GptOssError(f"{folder} has no provenance.json with checksums: it was not converted by gptoss-mlx")
    if strange := [name for name in wanted if Path(name).name != name]:
        raise GptOssError(f"{folder / PROVENANCE} names {strange[0]!r}, which is not a file name")
    here = {path.name for path in folder.glob("[!.]*.safetensors")}
    wrong = [f"{name} is missing" for name in wanted if name not in here]
    wrong += [f"{name} does not belong to the conversion" for name in sorted(here - wanted.keys())]
    total = sum((folder / name).stat().st_size for name in here & wanted.keys() if (folder / name).is_file())
    done = 0

    def read(count: int) -> None:
        nonlocal done
        done += count
        on_progress(done, total)

    for name in sorted(here & wanted.keys()):
        try:
            if sha256(folder / name, read) != wanted[name]:
                wrong.append(f"{name} has changed since it was written: its SHA-256 differs")
        except OSError as error:
            wrong.append(f"{name} cannot be read: {error.strerror}")
    return [printable(line) for line in wrong]
