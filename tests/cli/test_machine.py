"""`doctor`: what it prints about this machine, and its self-test."""

import os
import re
import sys

import pytest

import gptoss_convert
from gptoss_mlx import GptOssError, kernels
from gptoss_mlx.cli import cli, machine_facts, self_test
from terminal.terminals import Terminal

FACTS = {"gptoss-mlx", "system", "device", "kernels", "memory", "models"}
DETAILS = {"processor", "packages", "MLX's environment", "power"}
CHECKS = {"mapped weights", "8-bit KV cache", "paged experts", "cache and window", "memory of MLX", "read bandwidth"}


@pytest.mark.parametrize("recipes", [["mxfp4-q4"], pytest.param(None, marks=pytest.mark.slow, id="all")])
def test_doctor(monkeypatch, capsys, recipes):
    """In this process, for the sake of one recipe instead of all, and of a text little longer than the window."""
    if recipes:
        monkeypatch.setattr(self_test, "TOKENS", 150)
        monkeypatch.setattr(gptoss_convert, "RECIPES", {name: gptoss_convert.RECIPES[name] for name in recipes})
    monkeypatch.setattr(kernels, "BANDWIDTH_BYTES", kernels.MIN_BANDWIDTH_BYTES)
    monkeypatch.setenv("GPTOSS_MLX_CONFIG", os.devnull)
    cli(["doctor", "--self-test"], standalone_mode=False)
    first, *lines, last = capsys.readouterr().out.splitlines()
    assert (first, last) == ("```text", "```")
    checks = {line[:24].strip(): line for line in lines if line[24:28] in ("pass", "FAIL")}
    assert checks.keys() == CHECKS | {f"logits, {name}" for name in recipes or gptoss_convert.RECIPES}
    assert all(line[24:28] == "pass" for line in checks.values()), checks
    assert {line[:24].strip() for line in lines} >= FACTS | DETAILS
    assert not [line for line in lines if "GiB" in line]
    assert os.path.expanduser("~/") not in "\n".join(lines)


@pytest.mark.slow
def test_a_check_that_fails(monkeypatch, capsys):
    """The limit is below what rounding makes of the logits."""
    monkeypatch.setattr(gptoss_convert, "RECIPES", {"mxfp4-q4": gptoss_convert.RECIPES["mxfp4-q4"]})
    monkeypatch.setattr("gptoss_mlx.cli.self_test.MAX_DIVERGENCE", -1.0)
    monkeypatch.setenv("GPTOSS_MLX_CONFIG", os.devnull)
    with pytest.raises(GptOssError, match=r"^3 of the checks failed: paste"):
        cli(["doctor", "--self-test"], standalone_mode=False)
    assert capsys.readouterr().out.count("FAIL: ") == 3


@pytest.fixture
def mac(tmp_path, monkeypatch):
    """A Mac, as far as the programs that answer for it are asked; `says` has what each of them prints."""

    def says(**answers):
        for name, text in answers.items():
            program = tmp_path / name
            program.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\n")
            program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
        monkeypatch.setattr(sys, "platform", "darwin")
        monkeypatch.setattr(machine_facts.platform, "mac_ver", lambda: ("15.6.1", ("", "", ""), "arm64"))
        return dict(machine_facts.facts()) | dict(machine_facts.details())

    return says


GPU = """\
+-o AGXAcceleratorG14G  <class AGXAcceleratorG14G, id 0x100000485, registered, matched, active, busy 0>
    {
      "IOClass" = "AGXAcceleratorG14G"
      "gpu-core-count" = 10
      "model" = "Apple M2"
    }
"""
BATTERY = "Now drawing from 'Battery Power'\n -InternalBattery-0 (id=1234)\t81%; discharging; 4:55 remaining"


def test_what_a_mac_says(mac, monkeypatch):
    monkeypatch.setenv("MLX_MAX_MB_PER_BUFFER", "100")
    monkeypatch.setenv("MLX_HOSTFILE", "/Users/me/hosts.json")
    found = mac(ioreg=GPU, sysctl="Apple M2", pmset=BATTERY)
    assert found["system"].startswith("macOS 15.6.1, Python for ")
    assert "Rosetta" not in found["system"]
    assert found["processor"].startswith("Apple M2, ")
    assert (found["GPU cores"], found["power"]) == ("10", "battery")
    assert "MLX_MAX_MB_PER_BUFFER=100" in found["MLX's environment"]
    assert "/Users/" not in found["MLX's environment"]
    assert "mlx 0." in found["packages"]


def test_a_python_that_is_translated(mac):
    assert mac(sysctl="1")["system"].endswith(" under Rosetta")


def test_a_mac_that_says_nothing(mac):
    found = mac()
    assert "GPU cores" not in found
    assert found["power"] == "not known"


def test_a_block_for_others_does_not_name_the_user(monkeypatch):
    monkeypatch.setenv("HOME", "/Users/me")
    block = machine_facts.as_block([("models", "/Users/me/models, 4 GB free"), ("device", "GPU, Apple M2")])
    assert block.split("\n")[1:-1] == [f"{'models':24}~/models, 4 GB free", f"{'device':24}GPU, Apple M2"]
    monkeypatch.setenv("HOME", "/")
    assert machine_facts.without_user("/models") == "/models"


LONG = (
    "0.1.0, MLX 0.32.4, Python 3.11.7, and so on until it is too long for a line of any of these terminals, at /a/b-c"
)
AT_80 = """\
gptoss-mlx              0.1.0, MLX 0.32.4, Python 3.11.7, and so on until it is
                        too long for a line of any of these terminals, at /a/b-c"""
AT_40 = """\
gptoss-mlx
  0.1.0, MLX 0.32.4, Python 3.11.7, and
  so on until it is too long for a line
  of any of these terminals, at /a/b-c"""


def test_lines_for_a_terminal():
    assert machine_facts.as_lines("gptoss-mlx", LONG) == f"{'gptoss-mlx':24}{LONG}"
    assert machine_facts.as_lines("gptoss-mlx", LONG, width=80) == AT_80
    assert machine_facts.as_lines("gptoss-mlx", LONG, width=40) == AT_40


def test_names_leave_room_before_the_values():
    names = FACTS | DETAILS | CHECKS | {f"logits, {name}" for name in gptoss_convert.RECIPES}
    assert max(map(len, names)) <= machine_facts.COLUMN - 2


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_doctor_in_a_terminal(command, environment, columns):
    """Every value in its column, or, in a narrow terminal, below its name; one unit."""
    terminal = Terminal([*command, "doctor"], environment, columns=columns, GPTOSS_MLX_HOME="/", GPTOSS_MLX_KERNELS="0")
    assert terminal.exit_status() == 0
    lines = terminal.seen.splitlines()
    if columns == 40:
        assert [line for line in lines if not re.fullmatch(r"\S+( \S+)*|  \S.*", line)] == []
    else:
        assert [line for line in lines if line[22:24].strip() or not line[24:25].strip()] == []
    assert {re.split(" {2,}", line)[0] for line in lines} >= FACTS
    assert "GiB" not in terminal.seen
    assert re.search(r"memory\s+[\d.]+ GB", terminal.seen)


def test_doctor_without_kernels(run):
    done = run("doctor", GPTOSS_MLX_KERNELS="0")
    assert done.returncode == 0
    assert "off: switched off" in done.stdout
