"""What MLX is to read from the environment before it first touches Metal."""

import json
import os
import subprocess
import sys

import pytest

from gptoss_mlx import COMMIT_AFTER

# What MLX, a C++ library, will find when it asks.
PROGRAM = """
import ctypes, json, sys
sys.platform = {platform!r}
import gptoss_mlx
assert "mlx.core" not in sys.modules
getenv = ctypes.CDLL(None).getenv
getenv.restype = ctypes.c_char_p
print(json.dumps({{name: (getenv(name.encode()) or b"").decode() for name in {names}}}))
"""


def seen_by_mlx(platform, **variables):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLX_")}
    program = PROGRAM.format(platform=platform, names=[*COMMIT_AFTER, "MLX_METAL_FAST_SYNCH"])
    words = [sys.executable, "-c", program]
    return json.loads(subprocess.run(words, env=kept | variables, capture_output=True, check=True, text=True).stdout)


def test_a_mac_commits_less_often():
    expected = {"MLX_MAX_OPS_PER_BUFFER": "120", "MLX_MAX_MB_PER_BUFFER": "100", "MLX_METAL_FAST_SYNCH": ""}
    assert seen_by_mlx("darwin") == expected


@pytest.mark.parametrize("name", COMMIT_AFTER)
def test_what_a_person_has_set_wins(name):
    assert seen_by_mlx("darwin", **{name: "7"}) == seen_by_mlx("darwin") | {name: "7"}


def test_elsewhere_nothing_is_set():
    assert set(seen_by_mlx("linux").values()) == {""}
