"""Programs from npm, for the tests that need a real client."""

import shutil
import subprocess

import pytest


def npm_program(package: str, name: str, folders: pytest.TempPathFactory) -> str:
    """The program, from the path or else from npm; skips the test where it is not to be had."""
    if found := shutil.which(name):
        return found
    if not shutil.which("npm"):
        pytest.skip(f"there is no npm, and no {name}")
    folder = folders.mktemp(name)
    words = ["npm", "install", "--no-audit", "--no-fund", "--prefix", folder, package]
    installed = subprocess.run(words, capture_output=True, text=True, timeout=240)
    if installed.returncode:
        pytest.skip(f"npm does not install {package}: {installed.stderr.strip()[-200:]}")
    return str(folder / "node_modules" / ".bin" / name)
