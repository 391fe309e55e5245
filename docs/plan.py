#!/usr/bin/env python3
"""Writes the memory plan that docs/memory.md shows, as `gptoss-mlx plan` prints it on a CPU with kernels: `make docs`.

From the headers of a model of the size of gpt-oss-20b, whose files are holes.
"""

from __future__ import annotations

import io
import os
import re
import sys
import tempfile
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

from gptoss_mlx.cli.plan_table import print_plan
from gptoss_mlx.memory.plan import Device, make_plan

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "memory.md"
COMMAND = "$ gptoss-mlx plan gpt-oss-20b --memory 8GB"
BLOCK = re.compile(rf"(?<=```console\n{re.escape(COMMAND)}\n).*?(?=```)", re.DOTALL)
MEMORY = 8_000_000_000
TOKENIZER_BYTES = 28_080_000  # about the size of gpt-oss's tokenizer.json


def printed() -> str:
    """The plan, in lines of at most 120 columns."""
    sys.path.append(str(ROOT / "tests"))
    from memory.shapes import SIZES, converted_shape

    with tempfile.TemporaryDirectory() as folder:
        model = converted_shape(Path(folder) / "gpt-oss-20b", *SIZES["20b"])
        with open(model / "tokenizer.json", "wb") as file:
            file.truncate(TOKENIZER_BYTES)
        plan = make_plan(model, Device("this machine", MEMORY, None, "kernels"))
    plan = replace(plan, model="gpt-oss-20b")
    with patch.dict(os.environ, COLUMNS="120"), redirect_stdout(io.StringIO()) as output:
        print_plan(plan)
    return "".join(line.rstrip() + "\n" for line in output.getvalue().splitlines())


def page() -> str:
    """All of docs/memory.md."""
    return BLOCK.sub(lambda _: printed(), PAGE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
