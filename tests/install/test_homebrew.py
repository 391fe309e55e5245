"""The Homebrew formula, as it is made from a wheel and a lock file; nothing is downloaded."""

import hashlib
import re
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WHEEL = "gptoss_mlx-0.1.0-cp313-cp313-macosx_14_0_arm64.whl"
HOST = "https://index.example/files"
FILES = {
    "mlx": ["mlx-0.32.4-cp312-cp312-macosx_14_0_arm64.whl", "mlx-0.32.4-cp313-cp313-macosx_14_0_arm64.whl"],
    "click": ["click-8.3.0-py3-none-any.whl"],
    "tokenizers": [
        "tokenizers-0.22.1-cp39-abi3-macosx_10_12_x86_64.whl",
        "tokenizers-0.22.1-cp39-abi3-macosx_11_0_arm64.whl",
        "tokenizers-0.22.1-cp39-abi3-manylinux_2_17_x86_64.whl",
    ],
    "numpy": ["numpy-2.4.0-cp313-cp313-macosx_11_0_arm64.whl", "numpy-2.4.0-cp313-cp313-macosx_14_0_arm64.whl"],
}
CHOSEN = {"mlx": 1, "click": 0, "tokenizers": 1, "numpy": 1}


def checksum(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def locked(files: dict[str, list[str]]):
    return {
        "packages": [
            {
                "name": name,
                "version": "1",
                "wheels": [{"url": f"{HOST}/{file}", "hashes": {"sha256": checksum(file)}} for file in wheels],
            }
            for name, wheels in files.items()
        ]
    }


@pytest.fixture(scope="module")
def made():
    return runpy.run_path(str(ROOT / "release" / "homebrew" / "formula.py"))


@pytest.fixture
def formula(made, tmp_path):
    wheel = tmp_path / WHEEL
    wheel.write_bytes(b"a wheel")
    return made["formula"](wheel, f"https://release.example/{WHEEL}", "https://home.example", locked(FILES))


def test_it_has_the_wheel_and_what_that_needs(formula):
    assert f'url "https://release.example/{WHEEL}", using: :nounzip' in formula
    assert f'sha256 "{hashlib.sha256(b"a wheel").hexdigest()}"' in formula
    assert 'depends_on "python@3.13"' in formula
    resources = re.findall(r'resource "(.*)" do\n    url "(.*)", using: :nounzip\n    sha256 "(.*)"\n  end', formula)
    assert resources == [
        (name, f"{HOST}/{FILES[name][number]}", checksum(FILES[name][number])) for name, number in CHOSEN.items()
    ]
    assert not re.search(r"@[A-Z]+@", formula)


def test_ruby_reads_it(formula):
    if not shutil.which("ruby"):
        pytest.skip("ruby is not installed")
    subprocess.run(["ruby", "-c"], input=formula, text=True, check=True, capture_output=True)


def test_a_package_without_a_wheel_for_this_python(made, tmp_path):
    wheel = tmp_path / WHEEL
    wheel.touch()
    only_older = locked({"mlx": FILES["mlx"][:1]})
    with pytest.raises(SystemExit, match="mlx 1 has no wheel for this Python on a Mac"):
        made["formula"](wheel, "", "", only_older)
