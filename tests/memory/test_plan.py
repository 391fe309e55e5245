"""The plan: what fits where, what is given up in which order, and what the system says about its memory."""

import json
import os
import re
import shutil
import struct
import sys
from dataclasses import replace
from itertools import product

import pytest

from gptoss_convert import RECIPES
from gptoss_mlx import GptOssError, kernels
from gptoss_mlx.device import BACKENDS
from gptoss_mlx.memory.devices import DEVICES, Device
from gptoss_mlx.memory.plan import BudgetTooSmall, EngineConfig, MemoryEstimate, make_plan
from gptoss_mlx.memory.system import available, parse_size, size_text, total
from gptoss_mlx.model.safetensors import read_header
from memory.cgroup import run_limited, why_not
from memory.shapes import SIZES, converted_shape

GB = 10**9
CPU = Device("a test", 64 * GB, None, "kernels")
METAL = BACKENDS["gpu"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("shapes")
    return {name: converted_shape(root / name, *size) for name, size in SIZES.items()}


@pytest.mark.parametrize(
    ("text", "size"),
    [("16GB", 16 * GB), ("16gib", 2**34), (" 900 MB ", 9 * 10**8), ("1.5G", 1.5 * GB), ("8589934592", 2**33)],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (67_108_864, "67.1 MB"), (13_840_000_000, "13.84 GB")],
)
def test_sizes_as_people_read_them(count, text):
    assert size_text(count) == text


@pytest.mark.parametrize("text", ["", "lots", "-5GB", "0", "16XB", "1e3", "12 bytes", "3", "99999999TB", "GB", "nan"])
def test_no_sizes(text):
    with pytest.raises(GptOssError, match="memory"):
        parse_size(text)


def test_all_fits_and_nothing_is_given_up(folders):
    plan = make_plan(folders["20b"], CPU, memory=16 * GB, context=131072)
    assert plan.compromise is None
    assert plan.settings.expert_slots is None
    assert plan.settings.kv_bits == 16
    # 20b in MXFP4 and 4 bits, and 24,576 bytes a position.
    rows = {row.name: row.bytes for row in plan.rows}
    assert rows["experts"] == 24 * 32 * 3 * (2880 * 2880 * 17 // 32 + 2880 * 2)
    assert rows["KV cache, full layers, 16 bits"] == 131072 * 24576
    assert rows["KV cache, sliding layers"] == 12 * 2 * 8 * 128 * 64 * 2
    assert sum(rows.values()) == plan.total <= 16 * GB


def test_the_order_in_which_things_are_given_up(folders):
    """The less memory, the further down the list; every plan keeps to what it was given."""
    considered = make_plan(folders["20b"], CPU, memory=12 * GB, context=131072).attempts
    assert [attempt.what for attempt in considered] == [
        "everything in memory",
        "8-bit KV cache",
        "8-bit KV cache, prefill in chunks of 128 tokens",
        "8-bit KV cache, prefill in chunks of 32 tokens",
        "experts paged, 8-bit KV cache",
    ]
    for attempt in considered[:-1]:
        plan = make_plan(folders["20b"], CPU, memory=attempt.bytes, context=131072)
        assert plan.attempts[-1] == attempt
        assert plan.total == attempt.bytes
    contexts = []
    for memory in (12, 8, 6, 4, 3, 2):
        plan = make_plan(folders["20b"], CPU, memory=memory * GB, context=131072)
        assert plan.total <= memory * GB
        assert plan.attempts[-1].what.startswith("experts paged")
        contexts.append(plan.settings.context)
    assert contexts == sorted(contexts, reverse=True)
    assert contexts[0] == 131072


def test_a_shorter_context_is_the_last_resort_and_is_said(folders):
    plan = make_plan(folders["20b"], CPU, memory=2_500_000_000, context=131072)
    assert plan.settings.expert_slots >= 8
    assert plan.settings.context < 131072
    assert f"a context of {plan.settings.context:,} instead of 131,072" in plan.compromise


def test_without_a_wish_the_context_is_as_long_as_what_is_left_allows(folders):
    contexts = [make_plan(folders["20b"], CPU, memory=int(m * GB)).settings.context for m in (16, 13, 12.1, 8)]
    assert contexts == sorted(contexts, reverse=True)
    assert contexts[0] == 131072
    assert contexts[-1] == 8192


def test_kv_bits_are_kept_as_asked(folders):
    for bits in (8, 16):
        for memory in (64, 14, 8):
            assert make_plan(folders["20b"], CPU, memory=memory * GB, kv_bits=bits).settings.kv_bits == bits


def test_the_smallest_memory_is_enough(folders):
    with pytest.raises(BudgetTooSmall, match=r"needs at least .* GB") as caught:
        make_plan(folders["20b"], CPU, memory=GB)
    smallest = caught.value.smallest
    assert make_plan(folders["20b"], CPU, memory=smallest).total == smallest
    with pytest.raises(BudgetTooSmall):
        make_plan(folders["20b"], CPU, memory=smallest - 1)


@pytest.mark.parametrize("memory", [80, 64, 32, 16])
def test_120b(folders, memory):
    plan = make_plan(folders["120b"], CPU, memory=memory * GB)
    assert plan.total <= memory * GB
    slots = plan.settings.expert_slots
    if memory >= 64:
        assert slots is None
    else:
        # What is left for experts is used for experts: not one more would fit.
        assert (memory * GB - plan.total) < plan.total / 100
        assert 0.15 * 36 * 128 < slots < 36 * 128


def test_the_default_fits_the_tightest_mac_of_16_gb(folders):
    """10.7 GB for the GPU, 8,192 tokens of context; the embeddings are mapped, and not the GPU's."""
    mac = replace(Device.named("mac-16gb"), gpu=10_700_000_000)
    plan = make_plan(folders["20b"], mac, memory=None, context=8192, kv_bits=None)
    assert sum(row.bytes for row in plan.rows if row.on_gpu) <= 10_700_000_000
    assert plan.settings.expert_slots is None
    assert plan.settings.cpu_expert_layers == 2
    assert not next(row for row in plan.rows if row.name == "embeddings").on_gpu


def test_beside_a_gpu_some_experts_move_to_the_cpu(folders):
    gpu = Device("a test", 16 * GB, int(11.2 * GB), "gpu", cpu_experts=True)
    plan = make_plan(folders["20b"], gpu, context=32768)
    assert plan.on_gpu <= 11.2 * GB < plan.total <= 16 * GB
    assert 1 <= plan.settings.cpu_expert_layers < 24
    without = make_plan(folders["20b"], replace(gpu, cpu_experts=False), context=32768)
    assert without.settings.expert_slots
    assert without.on_gpu <= 11.2 * GB


def test_a_mac_with_16_gb_keeps_what_costs_most(folders):
    """Two layers on the CPU cost less than one, the 8-bit KV cache and short prefill chunks."""
    settings = make_plan(folders["20b"], Device.named("mac-16gb")).settings
    assert (settings.kv_bits, settings.prefill_chunk, settings.cpu_expert_layers) == (16, 2048, 2)
    long = make_plan(folders["20b"], Device.named("mac-16gb"), context=131072).settings
    assert (long.kv_bits, long.prefill_chunk) == (8, 512)


@pytest.mark.parametrize("gpu", [4.0, 8.0, 10.0, 10.7, 11.0, 11.3, 11.5, 11.7, 12.0])
def test_nothing_that_fits_beside_a_gpu_costs_less(folders, gpu):
    device = Device("a test", 16 * GB, int(gpu * GB), "gpu", cpu_experts=True)
    plan, sizes, costs = make_plan(folders["20b"], device, context=8192), MemoryEstimate(folders["20b"]), METAL.costs

    def cost(kv_bits, chunk, layers, on_gpu):
        of_chunk = dict(zip(METAL.prefill_chunks, (0, *costs.shorter_chunks), strict=True))[chunk]
        of_kv = costs.quantized_kv * (kv_bits == 8)
        return of_kv + of_chunk + costs.cpu_layer * layers + costs.cpu_embeddings * (not on_gpu)

    def fits(kv_bits, chunk, layers, on_gpu):
        settings = EngineConfig(8192, kv_bits, chunk, cpu_expert_layers=layers, embeddings_on_gpu=on_gpu)
        return sum(row.bytes for row in sizes.rows(settings, device) if row.on_gpu) <= device.gpu

    possible = [each for each in product((16, 8), METAL.prefill_chunks, range(25), (True, False)) if fits(*each)]
    got = plan.settings
    chosen = got.kv_bits, got.prefill_chunk, got.cpu_expert_layers, got.embeddings_on_gpu
    assert chosen in possible
    assert cost(*chosen) == min(cost(*each) for each in possible)
    lacking = [attempt.shortfall(device) for attempt in plan.attempts]
    assert lacking == sorted(set(lacking), reverse=True)
    assert lacking[-1] == (0, 0)
    assert (got.allocations, plan.on_gpu <= device.gpu) == (device.gpu, True)


def test_experts_that_the_kernels_cannot_map_are_not_left_to_the_cpu(folders, tmp_path):
    """A header of another length, as other programs write them: nothing is aligned."""
    shutil.copytree(folders["20b"], tmp_path / "model", copy_function=os.link)
    path = tmp_path / "model" / "model-00000.safetensors"
    header = read_header(path)
    path.unlink()
    text = header_text(header, 1)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + max(tensor.end for tensor in header.tensors.values()) - header.nbytes)
    mac = Device.named("mac-16gb")
    plan = make_plan(tmp_path / "model", mac)
    assert plan.settings.expert_slots
    assert plan.copied == sum(tensor.nbytes for tensor in header.tensors.values())
    assert not next(row for row in plan.rows if row.name == "attention, routers, head").mapped
    assert make_plan(folders["20b"], mac).copied == 0


def header_text(header, odd: int) -> bytes:
    entries = {
        name: {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": [tensor.start - header.nbytes, tensor.end - header.nbytes],
        }
        for name, tensor in header.tensors.items()
    }
    text = json.dumps(entries).encode()
    return text + b" " * (-(8 + len(text)) % 4 + odd)


@pytest.mark.parametrize("name", json.loads(DEVICES.read_text()))
def test_profiles(folders, name):
    device = Device.named(name)
    plan = make_plan(folders["20b"], device)
    assert plan.total <= device.memory
    assert device.gpu is None or plan.on_gpu <= device.gpu


def test_bad_wishes(folders):
    with pytest.raises(GptOssError, match="no device 'toaster': choose from mac-8gb, mac-16gb"):
        Device.named("toaster")
    with pytest.raises(GptOssError, match="131,073 is more than the model's 131,072"):
        make_plan(folders["20b"], CPU, context=131073)


def test_this_machine():
    device = Device.here()
    assert 0 < device.memory <= total()
    assert device.memory <= (available() or total())


def test_a_control_group_limits_what_is_available():
    if reason := why_not():
        pytest.skip(reason)
    program = "from gptoss_mlx.memory.system import *; print(available(), cgroup_limit())"
    limited = run_limited([sys.executable, "-c", program], 2**29)
    got, limit = map(int, limited.stdout.split())
    assert got <= limit == 2**29


class TestNotInstalled:
    """A published model before any download: `GPTOSS_MLX_HOME` is empty."""

    def test_each_recipe_has_a_row_and_one_is_chosen(self, run_here):
        result = run_here("plan", "gpt-oss-20b", "--device", "mac-16gb", COLUMNS="200")
        assert result.returncode == 0, result.stderr
        lines = result.stdout.splitlines()
        for recipe in RECIPES:
            (row,) = [line for line in lines if f"│ {recipe} " in line]
            assert re.search(r"│ 1\d\.\d\d GB ", row)
        (why,) = [line for line in lines if line.startswith("recipe ")]
        assert why.startswith("recipe mxfp4-q4, the smallest to choose from: with 16,384 tokens even it takes 1")
        assert any(re.fullmatch(r"disk: 16\.\d\d GB while it is converted", line) for line in lines)
        (speed,) = [line for line in lines if line.startswith("decode: ")]
        assert "(M1)" in speed
        assert "nobody has run gptoss-mlx there" in speed
        assert "openai/gpt-oss-20b with mxfp4-q4 on mac-16gb" in result.stdout

    def test_json(self, run_here):
        result = json.loads(run_here("plan", "gpt-oss-120b", "--device", "mac-96gb", "--json").stdout)
        assert result["recipe"] == "mxfp4-q8"
        assert list(result["recipes"]) == list(RECIPES)
        chosen = result["recipes"]["mxfp4-q8"]
        assert chosen["settings"]["expert_slots"] is None
        assert chosen["total"] == sum(row["bytes"] for row in chosen["rows"])
        assert set(chosen["tokens_per_second"]) == {"M2 Max", "M3 Max with 30 GPU cores", "M3 Ultra"}

    def test_the_limit_that_is_asked_for(self, run_here):
        result = json.loads(run_here("plan", "gpt-oss-20b", "--memory", "8GB", "--json").stdout)
        assert result["recipe"] == "mxfp4-q4"
        assert all(each["total"] <= 8 * GB for each in result["recipes"].values())

    @pytest.mark.parametrize("device", json.loads(DEVICES.read_text()))
    def test_every_device(self, run_here, device):
        result = run_here("plan", "gpt-oss-20b", "--device", device)
        assert result.returncode == 0, result.stderr
        assert "decode: " in result.stdout

    def test_the_plan_is_within_a_hundredth_of_that_of_a_folder(self, run_here, folders):
        """That of the tests' own headers, which other code writes: the tokenizer apart, which that folder lacks."""
        ours = json.loads(run_here("plan", "gpt-oss-20b", "--device", "mac-24gb", "--context", 16384, "--json").stdout)
        rows = {row["name"]: row["bytes"] for row in ours["recipes"]["mxfp4-q4"]["rows"]}
        theirs = make_plan(folders["20b"], Device.named("mac-24gb"), context=16384)
        for row in theirs.rows:
            assert rows.pop(row.name) == pytest.approx(row.bytes, rel=0.001)
        assert list(rows) == ["tokenizer"]

    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            (("gpt-oss-20b", "--memory", "1GB"), "openai/gpt-oss-20b with mxfp4-q4 needs at least"),
            (("gpt-oss-20b", "--context", 200000), "more than the model's 131,072"),
            (("gpt-oss-20b", "--device", "toaster"), "there is no device 'toaster'"),
            (("somebody/tuned",), "somebody/tuned is not installed: run `gptoss-mlx convert somebody/tuned"),
        ],
    )
    def test_bad_input_is_one_line(self, run_here, arguments, complaint):
        result = run_here("plan", *arguments)
        assert result.returncode == 1
        assert complaint in result.stderr
        assert len(result.stderr.splitlines()) == 1
        assert result.stdout == ""


class TestCommand:
    def test_table(self, run, folders):
        result = run("plan", folders["20b"], "--memory", "8GB", "--context", 4096)
        assert result.returncode == 0
        for text in ("expert slots", "anonymous", "total", "of 8.00 GB", "context 4,096", "chosen: experts paged"):
            assert text in result.stdout

    def test_what_a_mac_gives_up_is_explained(self, run_here, folders):
        result = run_here("plan", folders["20b"], "--device", "mac-16gb", "--context", 131072, COLUMNS="200")
        lines = [line for line in result.stdout.splitlines() if line.startswith(("too large: ", "chosen: "))]
        plan = make_plan(folders["20b"], Device.named("mac-16gb"), context=131072)
        assert lines[0].startswith("too large: everything in memory: ")
        assert lines[-1].startswith(f"chosen: {plan.attempts[-1].what} (")
        shown = [line for line in lines if " on the GPU" in line]
        assert f"too large: {len(plan.attempts) - 1 - len(shown)} others, " in result.stdout

    def test_json(self, run_here, folders):
        result = run_here("plan", folders["120b"], "--device", "mac-16gb", "--json")
        plan = json.loads(result.stdout)
        assert plan["total"] == sum(row["bytes"] for row in plan["rows"])
        assert plan["settings"]["expert_slots"] > 100
        assert plan["tokens_per_second"] == {}

    def test_the_speed_to_expect(self, run_here, folders):
        here = json.loads(run_here("plan", folders["20b"], "--memory", "14GB", "--json").stdout)
        there = json.loads(run_here("plan", folders["20b"], "--device", "mac-24gb", "--json").stdout)
        assert there["tokens_per_second"]["M4"] == pytest.approx(0.5 * 120e9 / there["token_bytes"])
        if kernels.native():
            assert list(here["tokens_per_second"]) == ["this machine"]

    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            (("--memory", "-8GB"), "is not an amount of memory"),
            (("--memory", "much"), "is not an amount of memory"),
            (("--memory", "1000000TB"), "not an amount of memory that a machine has"),
            (("--memory", "1GB"), "needs at least"),
            (("--context", 200000), "more than the model's 131,072"),
            (("--context", -1), "a context of -1 is too small"),
            (("--device", "toaster"), "there is no device 'toaster'"),
        ],
    )
    def test_bad_input_is_one_line(self, run_here, folders, arguments, complaint):
        result = run_here("plan", folders["20b"], *arguments)
        assert result.returncode == 1
        assert complaint in result.stderr
        assert len(result.stderr.splitlines()) == 1
        assert result.stdout == ""
