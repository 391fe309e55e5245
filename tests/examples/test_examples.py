"""The examples run as they stand."""

import os
from pathlib import Path

import zygote

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_python_api(demo_folder):
    args = [str(EXAMPLES / "python_api.py"), str(demo_folder)]
    done = zygote.shared().run(args, "", os.environ, timeout=100)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("logits (1, ")
    assert lines[1] == "the same with a cache True"
    assert lines[3] == "347 + 285 = 632"
    assert lines[4].startswith("gptoss-mlx converts OpenAI's gpt-oss models")
    assert lines[5] == "12 + 30 = 42"
    assert lines[6] == "It is 21 degrees and sunny in Bermi."
