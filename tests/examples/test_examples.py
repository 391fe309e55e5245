"""The examples run as they stand."""

import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_python_api(demo_folder):
    args = [sys.executable, EXAMPLES / "python_api.py", demo_folder]
    done = subprocess.run(args, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0].startswith("logits (1, ")
    assert lines[1] == "the same with a cache True"
    assert lines[3] == "347 + 285 = 632"
    assert lines[4].startswith("gptoss-mlx converts OpenAI's gpt-oss models")
    assert lines[5] == "12 + 30 = 42"
    assert lines[6] == "It is 21 degrees and sunny in Bermi."
