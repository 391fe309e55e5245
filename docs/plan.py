#!/usr/bin/env python3
"""Writes the memory plans that docs/memory.md shows, one as `gptoss-mlx plan` prints it on a CPU with kernels, and a
table of those for Macs: `make docs`.

From the shapes of the published models, as for a model that is not installed.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

from gptoss_convert.choice import choose
from gptoss_convert.published import SHAPES, published_headers
from gptoss_convert.recipes import DEFAULT_RECIPE
from gptoss_mlx.cli.plan_table import print_plan
from gptoss_mlx.memory.devices import DEVICES, Device
from gptoss_mlx.memory.estimate import ModelHeaders
from gptoss_mlx.memory.plan import make_plan
from gptoss_mlx.memory.speed import decode_speeds, range_text

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "memory.md"
NAME = "gpt-oss-20b"
COMMAND = f"$ gptoss-mlx plan {NAME} --memory 8GB"
BLOCK = re.compile(rf"(?<=```console\n{re.escape(COMMAND)}\n).*?(?=```)", re.DOTALL)
MACS = re.compile(r"(?<=\n\n)\| Mac \|.*?\n(?=\n)", re.DOTALL)
MAC = re.compile(r"mac-(\d+)gb")
MEMORY = 8_000_000_000


def headers(name: str) -> Callable[[str], ModelHeaders]:
    """Of the folder that a conversion of a published model would write, by the name of the recipe."""
    found = published_headers(f"openai/{name}")
    assert found, f"{name} is published"
    return found


def printed() -> str:
    """The plan, in lines of at most 120 columns."""
    plan = make_plan(headers(NAME)(DEFAULT_RECIPE), Device("this machine", MEMORY, None, "kernels"))
    with patch.dict(os.environ, COLUMNS="120"), redirect_stdout(io.StringIO()) as output:
        print_plan(replace(plan, model=NAME))
    return "".join(line.rstrip() + "\n" for line in output.getvalue().splitlines())


def macs() -> str:
    """The table: a row for each Mac and model, with the recipe that fits."""
    lines = [
        "| Mac | model | recipe | on the GPU | in all | context | given up | tokens/s to expect |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in json.loads(DEVICES.read_text(encoding="utf-8")):
        if mac := MAC.fullmatch(name):
            device = Device.named(name)
            for model in SHAPES:
                recipe, _ = choose(headers(model), device)
                plan = make_plan(headers(model)(recipe.name), device)
                speeds = decode_speeds(plan)
                speed = range_text(speeds.values()) if speeds else "the disk decides"
                on_gpu = f"{plan.on_gpu / 1e9:.1f} of {(plan.device.gpu or 0) / 1e9:.1f} GB"
                given_up = plan.attempts[-1].what if len(plan.attempts) > 1 else "nothing"
                if plan.settings.expert_slots is not None:
                    paged = f"experts paged, {plan.settings.expert_slots:,} of {plan.experts:,} in memory"
                    given_up = given_up.replace("experts paged", paged)
                size, context = f"{plan.total / 1e9:.1f} GB", f"{plan.settings.context:,}"
                name_of = model.removeprefix("gpt-oss-")
                cells = (f"{mac[1]} GB", name_of, f"`{recipe.name}`", on_gpu, size, context, given_up, speed)
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def page() -> str:
    """All of docs/memory.md."""
    text = BLOCK.sub(lambda _: printed(), PAGE.read_text(encoding="utf-8"))
    return MACS.sub(lambda _: macs(), text)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
