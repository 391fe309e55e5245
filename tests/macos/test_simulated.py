"""MLX's build for Metal, simulated: the kernels refuse what would crash there, and models run without it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gptoss_mlx import kernels

SAYS_METAL = "namespace mlx::core::metal { bool is_available() { return true; } }"

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="a simulation that Linux's dynamic linker makes possible"),
    pytest.mark.skipif(kernels.native() is None, reason=f"kernels: {kernels.why_not_native()}"),
    pytest.mark.skipif(not shutil.which("c++"), reason="needs a C++ compiler"),
]


@pytest.fixture(scope="module")
def says_metal(tmp_path_factory):
    """A library that answers in the place of MLX's own."""
    library = tmp_path_factory.mktemp("metal") / "says_metal.so"
    compile_ = ["c++", "-x", "c++", "-std=c++17", "-shared", "-fPIC", "-", "-o", library]
    subprocess.run(compile_, input=SAYS_METAL, text=True, check=True)
    return library


@pytest.mark.parametrize(
    ("device", "backend"), [("cpu", "kernels"), pytest.param("gpu", "gpu", marks=pytest.mark.slow)]
)
def test_models_run_in_metals_buffers(says_metal, demo_folder, device, backend):
    script = Path(__file__).with_name("simulated.py")
    run = subprocess.run(
        [sys.executable, script, demo_folder, device],
        env=os.environ | {"LD_PRELOAD": str(says_metal)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    made = json.loads(run.stdout)
    assert made["backend"] == backend
    assert len(made["refusals"]) == 2
    assert all("refused: arrays of a build for Metal" in refusal for refusal in made["refusals"])
    for way, answer in made["answers"].items():
        assert "Add the columns from the right" in answer["text"], way
        assert answer["adopted"], way
