#!/usr/bin/env python3
"""Writes the memory plans that docs/memory.md shows, one as `gptoss-mlx plan` prints it on a CPU with kernels, and a
table of those for Macs: `make docs`.

From the headers of models of the sizes of gpt-oss, whose files are holes.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
import tempfile
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

from gptoss_mlx.cli.plan_table import print_plan
from gptoss_mlx.memory.devices import DEVICES, Device
from gptoss_mlx.memory.plan import make_plan

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "memory.md"
COMMAND = "$ gptoss-mlx plan gpt-oss-20b --memory 8GB"
BLOCK = re.compile(rf"(?<=```console\n{re.escape(COMMAND)}\n).*?(?=```)", re.DOTALL)
MACS = re.compile(r"(?<=\n\n)\| Mac \|.*?\n(?=\n)", re.DOTALL)
MAC = re.compile(r"mac-(\d+)gb")
MEMORY = 8_000_000_000
TOKENIZER_BYTES = 28_080_000  # about the size of gpt-oss's tokenizer.json


def models(root: Path) -> dict[str, Path]:
    """The folders of both models, with tokenizers."""
    sys.path.append(str(ROOT / "tests"))
    from memory.shapes import SIZES, converted_shape

    folders = {name: converted_shape(root / f"gpt-oss-{name}", *size) for name, size in SIZES.items()}
    for folder in folders.values():
        with open(folder / "tokenizer.json", "wb") as file:
            file.truncate(TOKENIZER_BYTES)
    return folders


def printed(model: Path) -> str:
    """The plan, in lines of at most 120 columns."""
    plan = make_plan(model, Device("this machine", MEMORY, None, "kernels"))
    plan = replace(plan, model=model.name)
    with patch.dict(os.environ, COLUMNS="120"), redirect_stdout(io.StringIO()) as output:
        print_plan(plan)
    return "".join(line.rstrip() + "\n" for line in output.getvalue().splitlines())


def macs(folders: dict[str, Path]) -> str:
    """The table: a row for each Mac and model."""
    lines = [
        "| Mac | model | on the GPU | in all | context | given up |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name in json.loads(DEVICES.read_text(encoding="utf-8")):
        if mac := MAC.fullmatch(name):
            for model, folder in folders.items():
                plan = make_plan(folder, Device.named(name))
                on_gpu = f"{plan.on_gpu / 1e9:.1f} of {(plan.device.gpu or 0) / 1e9:.1f} GB"
                given_up = plan.attempts[-1].what if len(plan.attempts) > 1 else "nothing"
                if plan.settings.expert_slots is not None:
                    paged = f"experts paged, {plan.settings.expert_slots:,} of {plan.experts:,} in memory"
                    given_up = given_up.replace("experts paged", paged)
                cells = (f"{mac[1]} GB", model, on_gpu, f"{plan.total / 1e9:.1f} GB", f"{plan.settings.context:,}")
                lines.append(f"| {' | '.join((*cells, given_up))} |")
    return "\n".join(lines) + "\n"


def page() -> str:
    """All of docs/memory.md."""
    with tempfile.TemporaryDirectory() as root:
        folders = models(Path(root))
        text = BLOCK.sub(lambda _: printed(folders["20b"]), PAGE.read_text(encoding="utf-8"))
        return MACS.sub(lambda _: macs(folders), text)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
