"""The plan: what fits where, what is given up in which order, and what the system says about its memory."""

import json
import sys
from dataclasses import replace

import pytest

from gptoss_mlx import GptOssError
from gptoss_mlx.memory.devices import DEVICES, Device
from gptoss_mlx.memory.plan import BudgetTooSmall, make_plan
from gptoss_mlx.memory.system import available, parse_size, size_text, total
from memory.cgroup import run_limited, why_not
from memory.shapes import SIZES, converted_shape

GB = 10**9
CPU = Device("a test", 64 * GB, None, "kernels")


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


class TestCommand:
    def test_table(self, run, folders):
        result = run("plan", folders["20b"], "--memory", "8GB", "--context", 4096)
        assert result.returncode == 0
        for text in ("expert slots", "anonymous", "total", "of 8.00 GB", "context 4,096", "chosen: experts paged"):
            assert text in result.stdout

    def test_json(self, run, folders):
        result = run("plan", folders["120b"], "--device", "mac-16gb", "--json")
        plan = json.loads(result.stdout)
        assert plan["total"] == sum(row["bytes"] for row in plan["rows"])
        assert plan["settings"]["expert_slots"] > 100

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
    def test_bad_input_is_one_line(self, run, folders, arguments, complaint):
        result = run("plan", folders["20b"], *arguments)
        assert result.returncode == 1
        assert complaint in result.stderr
        assert len(result.stderr.splitlines()) == 1
        assert result.stdout == ""
