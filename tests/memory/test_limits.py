"""A process keeps to its plan: under a limit of the kernel, over many turns, and with more than the machine has."""

import json
import sys
from pathlib import Path

import pytest

from checkpoints import config_of, write_checkpoint
from gptoss_convert import convert
from gptoss_mlx import Sampling, Session, load
from gptoss_mlx.memory.plan import BudgetTooSmall, Device, make_plan
from gptoss_mlx.memory.system import proc_bytes
from memory.cgroup import run_limited, why_not

FILL = Path(__file__).with_name("fill.py")


def test_stats_tell_about_paging(run, demo_folder):
    with pytest.raises(BudgetTooSmall) as caught:
        make_plan(demo_folder, Device.here(), memory=2**20, context=1024)
    options = ("--memory", str(caught.value.smallest + 100_000), "--context", 1024)
    stats = run("chat", demo_folder, *options, "--max-tokens", 5, stdin="Hello\n/stats\n")
    assert "experts: " in stats.stderr


def test_more_memory_than_there_is_is_said(run, tmp_path):
    """A context of which the machine has no room: nothing of it is taken before it is used."""
    source = write_checkpoint(tmp_path / "source", config_of(max_position_embeddings=2**30))
    convert(source, tmp_path / "model")
    result = run("generate", tmp_path / "model", "-p", "Hi", "--memory", "900TB", "--context", 2**30, "--max-tokens", 1)
    assert "warning: " in result.stderr
    assert "and this machine has " in result.stderr


def test_under_a_limit_of_the_kernel(demo_folder):
    """The demo in as little as its plan asks for: not killed, and never above the plan."""
    if reason := why_not():
        pytest.skip(reason)
    plan = make_plan(demo_folder, Device.here(), context=2048)
    command = [sys.executable, str(FILL), str(demo_folder), "--memory", str(plan.total), "--context", "2048"]
    result = run_limited(command, plan.total + 40_000_000, cwd=FILL.parent.parent)  # the files of Python itself
    assert result.returncode == 0, result.stderr
    figures = json.loads(result.stdout)
    assert figures["decoded"] == 64
    assert figures["anonymous"] <= figures["plan"]["anonymous"]


def test_memory_does_not_grow_over_many_turns(demo_folder):
    if not proc_bytes("self/status"):
        pytest.skip("this system does not tell what a process takes")
    plan = make_plan(demo_folder, Device.here(), context=512)
    model = load(demo_folder, plan.settings)
    session = Session(model, sampling=Sampling(temperature=0), max_tokens=40, drop_when_full=True)
    sizes = []
    for turn in range(24):
        list(session.send(f"What is {turn} + 5?"))
        sizes.append(proc_bytes("self/status")["RssAnon"])
    assert max(sizes[16:]) <= max(sizes[8:16]) * 1.02 + 2_000_000  # a process full of tests is less tidy than a chat
