"""The decode speed to expect: what a token reads over a share of the bandwidth, and the words for how sure it is."""

import json
from collections import defaultdict

import pytest

from gptoss_mlx.memory.devices import DEVICES, Device
from gptoss_mlx.memory.plan import make_plan
from gptoss_mlx.memory.speed import HERE, SHARE, decode_speeds, decode_text, range_text, speed_text
from gptoss_mlx.memory.system import parse_size
from memory.shapes import SIZES, converted_shape

GB = 10**9
PROFILES = json.loads(DEVICES.read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return converted_shape(tmp_path_factory.mktemp("shapes") / "20b", *SIZES["20b"])


def test_a_token_reads_its_experts_and_all_that_is_dense(folder):
    """All at 4.25 and 4.5 bits: 1.27 GB of experts, 0.36 of attention, 0.33 of the head."""
    plan = make_plan(folder, Device("x", 64 * GB, None, "kernels", bandwidths={HERE: 40e9}))
    assert plan.token_bytes == pytest.approx(1.97 * GB, rel=0.01)
    assert plan.token_disk_bytes == 0
    assert decode_speeds(plan) == {HERE: pytest.approx(SHARE["kernels"] * 40e9 / plan.token_bytes)}


def test_here_it_was_measured(folder):
    text = decode_text(make_plan(folder, Device("x", 64 * GB, None, "kernels", bandwidths={HERE: 40e9})))
    assert text == "decode: about 12 tokens/s: 60 % of the 40.00 GB/s measured here just now, as measured on x86-64"


def test_where_nobody_has_run_it_that_is_said(folder):
    text = decode_text(make_plan(folder, Device.named("mac-24gb")))
    assert text.startswith("decode: about 26 (M2, M3), 31 (M4), ")
    assert "a guess, 50 % of the memory's bandwidth, as other programs reach on Macs" in text
    assert text.endswith("nobody has run gptoss-mlx there")


def test_where_experts_are_paged_the_disk_decides(folder):
    plan = make_plan(folder, Device.named("mac-8gb"))
    assert decode_speeds(plan) == {}
    missing = 1 - plan.settings.expert_slots / plan.experts
    assert plan.token_disk_bytes == pytest.approx(1.27 * GB * missing, rel=0.01)
    assert decode_text(plan).startswith("decode: as fast as the disk: ")


def test_without_a_bandwidth_there_is_no_figure(folder):
    assert decode_text(make_plan(folder, Device("x", 64 * GB, None, "cpu"))) is None


def test_less_memory_is_no_other_bandwidth(folder):
    mac = Device.named("mac-64gb")
    limited = make_plan(folder, mac, memory=16 * GB)
    assert decode_speeds(limited) == decode_speeds(make_plan(folder, mac))


@pytest.mark.parametrize(
    ("speed", "text"), [(0.123, "0.12"), (1.26, "1.3"), (9.44, "9.4"), (9.6, "10"), (99.6, "100"), (412.3, "412")]
)
def test_figures_of_two_digits(speed, text):
    assert speed_text(speed) == text


def test_ranges():
    assert range_text([30.1, 17.0, 22.0]) == "17 to 30"
    assert range_text([30.1, 30.2]) == "30"


def test_a_chip_has_one_bandwidth():
    found = defaultdict(set)
    for profile in PROFILES.values():
        for chip, bandwidth in profile["bandwidth"].items():
            found[chip].add(bandwidth)
    assert [chip for chip, bandwidths in found.items() if len(bandwidths) > 1] == []
    assert all(bandwidths for bandwidths in found.values())


@pytest.mark.parametrize("name", [name for name in PROFILES if name.startswith("mac-")])
def test_macs_follow_the_rule_that_their_descriptions_name(name):
    size = int(name.removeprefix("mac-").removesuffix("gb")) * 2**30
    profile = PROFILES[name]
    share, words = (3 / 4, "three quarters") if size >= 36 * 2**30 else (2 / 3, "two thirds")
    assert f"Metal recommends {words} of it" in profile["description"]
    assert 0 <= share * size - parse_size(profile["working_set"]) < 2**20
    assert parse_size(profile["memory"]) == pytest.approx(size - max(3 * 2**30, size / 5), abs=1)
    assert profile["bandwidth"]


def test_all_macs_and_some_phones():
    sizes = (8, 16, 18, 24, 32, 36, 48, 64, 96, 128, 192, 256, 512)
    assert [name for name in PROFILES if name.startswith("mac-")] == [f"mac-{size}gb" for size in sizes]
    assert sum(name.startswith(("iphone", "android")) for name in PROFILES) >= 4
