"""What a Mac with 16 GB would do with the demo model: the same answers, and as much memory of the GPU as is planned.

MLX's Metal allocator counts all that it adopts as in use, and is under pressure from 95 % of the working set on.
"""

import json
import sys
from dataclasses import replace

import mlx.core as mx
import pytest

import gptoss_convert
from chat.conversing import answer, make_session
from gptoss_mlx import kernels, load
from gptoss_mlx.bench import measure, roofline
from gptoss_mlx.cli import machine_facts, main, self_test
from gptoss_mlx.memory.devices import Device
from gptoss_mlx.memory.plan import MemoryEstimate, make_plan
from gptoss_mlx.model import checkpoint
from macos.metal_simulation import WORKING_SET, simulated_metal
from memory.shapes import SIZES, converted_shape

QUESTIONS = ("My locker code is 4711.", "What is my locker code?")
# What the plan gives up -> the tensors that are not the GPU's then, by parts of their names.
PLANS = {
    "everything on the GPU": ({}, ()),
    "8-bit KV cache": ({"kv_bits": 8}, ()),
    "embeddings on the CPU": ({"embeddings_on_gpu": False}, ("embed_tokens",)),
    "experts of 2 layers on the CPU": ({"cpu_expert_layers": 2}, ("layers.2.mlp.experts", "layers.3.mlp.experts")),
    "experts paged": ({"expert_slots": 12, "embeddings_on_gpu": False}, ("embed_tokens", ".mlp.experts.")),
}


def conversation(model) -> list[str]:
    session = make_session(model, functions=(), reasoning_effort="none")
    return [answer(session.send(question)) for question in QUESTIONS]


@pytest.fixture(scope="module")
def reference(demo_folder):
    """What is answered without a GPU."""
    return conversation(load(demo_folder))


@pytest.mark.parametrize("name", PLANS)
def test_the_answers_and_what_is_adopted(demo_folder, reference, name):
    changes, apart = PLANS[name]
    if "cpu_expert_layers" in changes and not kernels.native():
        pytest.skip(kernels.why_not_native())
    with simulated_metal() as metal:
        plan = make_plan(demo_folder, Device.here())
        assert plan.compromise is None
        settings = replace(plan.settings, **changes)
        model = load(demo_folder, settings)
        on_gpu = [row for row in MemoryEstimate(demo_folder).rows(settings, plan.device) if row.on_gpu]
        planned = sum(row.bytes for row in on_gpu if row.mapped)
        tensors = model_tensors(demo_folder)
        needed = sum(size for tensor, size in tensors.items() if not any(part in tensor for part in apart))
        assert needed <= metal.adopted <= planned
        assert metal.most_often() == 1
        assert not [tensor for tensor in metal.touched(demo_folder) if any(part in tensor for part in apart)]
        assert metal.limits == {"memory": settings.allocations, "cache": settings.workspace}
        assert sum(row.bytes for row in on_gpu) <= settings.allocations <= 0.93 * WORKING_SET
        assert conversation(model) == reference
        assert needed <= metal.adopted <= planned  # nothing more is adopted later


def test_the_profile_is_what_metal_reports():
    with simulated_metal():
        here, profile = Device.here(), Device.named("mac-16gb")
    assert here.memory == pytest.approx(profile.memory, rel=1e-3)
    assert here.gpu == pytest.approx(profile.gpu, rel=1e-3)
    assert here.backend == profile.backend


def model_tensors(folder) -> dict[str, int]:
    return {name: tensor.nbytes for name, tensor in checkpoint.Checkpoint.open(folder).tensors.items()}


def test_gpt_oss_20b_on_a_mac_with_16_gb(tmp_path):
    """All that is adopted, with the KV cache and the workspace, stays below the pressure of MLX's allocator."""
    if not kernels.native():
        pytest.skip(kernels.why_not_native())
    folder = converted_shape(tmp_path / "20b", *SIZES["20b"])
    with simulated_metal(reads=False) as metal:
        plan = make_plan(folder, Device.here())
        load(folder, plan.settings)
        adopted = metal.adopted
        metal.windows.clear()
        load(folder, replace(plan.settings, cpu_expert_layers=0, expert_slots=8))
        paged = metal.adopted
    anonymous = sum(row.bytes for row in plan.rows if row.on_gpu and not row.mapped)
    assert adopted + anonymous <= plan.on_gpu <= 0.93 * WORKING_SET
    assert paged < 0.1 * adopted  # attention, routers and head
    assert plan.settings.expert_slots is None


def test_files_that_are_not_laid_out_for_metal_are_planned_as_copies(demo_folder, tmp_path):
    """As MLX-LM writes them: nothing is adopted, and the plan says so and what to do."""
    for path in demo_folder.iterdir():
        if path.suffix == ".safetensors":
            tensors = mx.load(str(path))
            mx.save_safetensors(str(tmp_path / path.name), tensors)
        else:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with simulated_metal() as metal:
        plan = make_plan(tmp_path, Device.here())
        load(tmp_path, plan.settings)
        assert not metal.windows
        assert not any(row.mapped for row in plan.rows)
        assert plan.copied == sum(model_tensors(tmp_path).values())
        assert "is not laid out to be mapped" in plan.advice
        assert make_plan(demo_folder, Device.here()).advice is None


@pytest.mark.slow
def test_doctor(monkeypatch):
    recipes = {name: gptoss_convert.RECIPES[name] for name in ("mxfp4-q4",)}
    monkeypatch.setattr(gptoss_convert, "RECIPES", recipes)
    monkeypatch.setattr(self_test, "TOKENS", 150)
    with simulated_metal():
        facts = dict(machine_facts.facts())
        checks = list(self_test.self_test())
    assert facts["device"] == "GPU, Apple M2"
    assert facts["GPU limit"] == "11.45 GB in total, 8.59 GB per buffer"
    assert {"mapped weights", "logits, mxfp4-q4", "experts on the CPU", "memory of MLX"} <= {
        each.name for each in checks
    }
    assert [check.name for check in checks if not check.passed] == []


def test_bench(demo_folder, monkeypatch, capsys):
    sizes = ["--prompt", "20", "--generate", "4", "--depth", "0", "--repeat", "1", "--no-start"]
    monkeypatch.setattr(sys, "argv", ["gptoss-mlx", "bench", str(demo_folder), *sizes, "--format", "json"])
    monkeypatch.setattr(measure, "MIN_SECONDS", 0.0)
    for name in ("GPU_READ_BYTES", "MIN_GPU_READ_BYTES", "GPU_MATRIX_SIDE"):
        monkeypatch.setattr(roofline, name, 64 if name == "GPU_MATRIX_SIDE" else 2**16)
    with simulated_metal() as metal, pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert metal.limits["memory"] == int(0.93 * WORKING_SET)
    results = json.loads(capsys.readouterr().out)
    assert results["finished"]
    assert len(results["speeds"]) == 2
