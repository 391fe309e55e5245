"""`doctor`: what it prints about this machine, and its self-test."""

import os

import pytest

import gptoss_convert
from gptoss_mlx.cli import cli

FACTS = {"gptoss-mlx", "system", "device", "kernels", "memory", "models"}


@pytest.mark.parametrize("recipes", [["mxfp4-q4"], pytest.param(None, marks=pytest.mark.slow, id="all")])
def test_doctor(monkeypatch, capsys, recipes):
    """In this process, for the sake of one recipe instead of all."""
    if recipes:
        monkeypatch.setattr(gptoss_convert, "RECIPES", {name: gptoss_convert.RECIPES[name] for name in recipes})
    monkeypatch.setenv("GPTOSS_MLX_CONFIG", os.devnull)
    cli(["doctor", "--self-test"], standalone_mode=False)
    lines = capsys.readouterr().out.splitlines()
    names = {line[:20].strip() for line in lines} | {line[:24].strip() for line in lines}
    logits = {f"logits, {recipe}" for recipe in recipes or gptoss_convert.RECIPES}
    assert {*FACTS, "mapped weights", *logits, "cache and window"} <= names
    checks = [line for line in lines if line[24:28] in ("pass", "FAIL")]
    assert len(checks) == 3 + len(logits)
    assert all(line[24:28] == "pass" for line in checks), checks


def test_doctor_without_kernels(run):
    done = run("doctor", GPTOSS_MLX_KERNELS="0")
    assert done.returncode == 0
    assert "off: switched off" in done.stdout
