"""Sources of energy: trees of files as Linux lays them out, and libraries with the interfaces of NVIDIA and macOS.

The libraries are compiled here from the published interfaces: they show that the calls fit them, and no more.
"""

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from gptoss_mlx.bench import energy, nvidia
from gptoss_mlx.bench.energy import of_battery, of_gpu, of_packages, power_source
from gptoss_mlx.bench.nvidia import NvidiaGpu
from gptoss_mlx.device import Gpu, is_cuda
from gptoss_mlx.memory.macos import ResourceUsage, resource_usage

from .test_machine import write

# Counters


def zone(number: str, name: str, microjoules: int, range_: int = 262_143_328_850) -> dict[str, object]:
    folder = f"class/powercap/intel-rapl:{number}"
    return {
        f"{folder}/name": name,
        f"{folder}/energy_uj": microjoules,
        f"{folder}/max_energy_range_uj": range_,
    }


def test_packages_are_added_up_without_what_is_in_them_or_around_them(tmp_path):
    write(tmp_path, zone("0", "package-0", 1_000_000) | zone("0:0", "core", 400_000) | zone("1", "psys", 9_000_000))
    write(tmp_path, zone("2", "package-1", 5_000_000))
    with of_packages(tmp_path) as meter:
        assert meter.covers == "CPU package"
        assert meter.joules() == 0
        write(
            tmp_path, zone("0", "package-0", 3_500_000) | zone("0:0", "core", 800_000) | zone("1", "psys", 99_000_000)
        )
        write(tmp_path, zone("2", "package-1", 5_250_000))
        assert meter.joules() == pytest.approx(2.75)
        assert meter.joules() == pytest.approx(2.75)


def test_memory_with_a_zone_of_its_own_is_added_and_named(tmp_path):
    write(tmp_path, zone("0", "package-0", 1_000_000) | zone("0:1", "dram", 2_000_000))
    with of_packages(tmp_path) as meter:
        write(tmp_path, zone("0", "package-0", 2_000_000) | zone("0:1", "dram", 2_500_000))
        assert meter.covers == "CPU package and memory"
        assert meter.joules() == pytest.approx(1.5)


def test_a_counter_that_began_again_goes_on(tmp_path):
    write(tmp_path, zone("0", "package-0", 9_000_000, range_=10_000_000))
    with of_packages(tmp_path) as meter:
        for counter, total in ((9_500_000, 0.5), (250_000, 1.25), (9_000_000, 10.0), (8_000_000, 19.0)):
            write(tmp_path, zone("0", "package-0", counter, range_=10_000_000))
            assert meter.joules() == pytest.approx(total)


def test_a_counter_that_went_back_without_a_range_or_away_tells_no_more(tmp_path):
    write(tmp_path, zone("0", "package-0", 9_000_000, range_=0))
    with of_packages(tmp_path) as meter:
        write(tmp_path, zone("0", "package-0", 8_000_000, range_=0))
        assert meter.joules() is None
        write(tmp_path, zone("0", "package-0", 9_000_000, range_=0))
        assert meter.joules() is None
    with of_packages(tmp_path) as meter:
        shutil.rmtree(tmp_path / "class")
        assert meter.joules() is None


@pytest.mark.parametrize("counter", ["0", "", "many", "-"])
def test_a_counter_that_does_not_count_is_no_source(tmp_path, counter):
    assert of_packages(tmp_path) is None
    write(tmp_path, zone("0", "package-0", counter))
    assert of_packages(tmp_path) is None


def test_counters_that_only_root_may_read_are_no_source():
    with tempfile.TemporaryDirectory() as name:
        root = write(Path(name), zone("0", "package-0", 1_000_000))
        root.chmod(0o755)
        (root / "class/powercap/intel-rapl:0/energy_uj").chmod(0o400 if os.geteuid() == 0 else 0)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            assert of_packages(root) is None
        finally:
            os.seteuid(user)


# Batteries

SUPPLY = "class/power_supply"
BATTERY = {
    f"{SUPPLY}/BAT0/type": "Battery",
    f"{SUPPLY}/BAT0/status": "Discharging",
    f"{SUPPLY}/BAT0/power_now": 12_000_000,
}
MOUSE = {
    f"{SUPPLY}/hid-mouse/type": "Battery",
    f"{SUPPLY}/hid-mouse/scope": "Device",
    f"{SUPPLY}/hid-mouse/status": "Discharging",
}


@pytest.mark.parametrize(
    ("files", "source"),
    [
        ({}, None),
        (MOUSE, None),
        (BATTERY, "battery"),
        (BATTERY | {f"{SUPPLY}/AC/type": "Mains", f"{SUPPLY}/AC/online": 0}, "battery"),
        (BATTERY | {f"{SUPPLY}/AC/type": "Mains", f"{SUPPLY}/AC/online": 1}, "mains"),
        ({f"{SUPPLY}/BAT0/status": "Full"} | MOUSE, "mains"),
        ({f"{SUPPLY}/BAT0/status": "Unknown"}, None),
    ],
)
def test_where_power_comes_from(tmp_path, files, source):
    assert power_source(write(tmp_path, files)) == source


def test_the_power_of_a_battery_is_added_up_over_time(tmp_path):
    started = time.monotonic()
    with of_battery(write(tmp_path, BATTERY | MOUSE)) as meter:
        assert meter.covers == "whole machine, from the battery"
        time.sleep(0.3)
        joules = meter.joules()
        assert 0.3 * 12 <= joules <= 12 * (time.monotonic() - started)


def test_a_battery_is_read_meanwhile_so_that_changes_count(tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "SECONDS", 0.02)
    with of_battery(write(tmp_path, BATTERY)) as meter:
        write(tmp_path, {f"{SUPPLY}/BAT0/power_now": 120_000_000})
        time.sleep(0.3)
        write(tmp_path, BATTERY)
        assert meter.joules() > 120 * 0.2  # 3.6 J at the power of the start and of the end


def test_voltage_and_current_of_either_sign_make_a_power(tmp_path):
    write(tmp_path, {f"{SUPPLY}/BAT0/status": "Discharging", f"{SUPPLY}/BAT0/voltage_now": 4_000_000})
    assert of_battery(tmp_path) is None
    write(tmp_path, {f"{SUPPLY}/BAT0/current_now": -2_000_000})
    with of_battery(tmp_path) as meter:
        time.sleep(0.1)
        assert 0.8 <= meter.joules() < 8 * 5


def test_a_charger_ends_what_a_battery_can_tell(tmp_path):
    with of_battery(write(tmp_path, BATTERY)) as meter:
        assert meter.joules() is not None
        write(tmp_path, {f"{SUPPLY}/BAT0/status": "Charging"})
        assert meter.joules() is None
    assert of_battery(tmp_path) is None


def test_a_closed_meter_leaves_no_thread(tmp_path):
    before = threading.active_count()
    with of_battery(write(tmp_path, BATTERY)):
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


# Libraries


@pytest.fixture
def library(tmp_path):
    if not (compiler := shutil.which("cc")):
        pytest.skip("no C compiler")

    def build(source: str, *flags: str) -> ctypes.CDLL:
        built = Path(tempfile.mkdtemp(dir=tmp_path)) / "library.so"
        command = [compiler, "-shared", "-fPIC", "-x", "c", *flags, "-o", built, "-"]
        subprocess.run(command, input=source, text=True, check=True)
        return ctypes.CDLL(str(built))

    return build


NVML = r"""
#include <string.h>
typedef struct nvmlDevice_st { int number; } *nvmlDevice_t;
static struct nvmlDevice_st device;
static unsigned long long energy = 5000000000000ULL; /* more than 32 bits */
int nvmlInitWithFlags(unsigned int flags) { return flags; }
int nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *found) {
  if (strcmp(uuid, "GPU-1")) return 6;
  *found = &device;
  return 0;
}
int nvmlSystemGetDriverVersion(char *version, unsigned int length) {
  if (length < 80) return 7;
  strcpy(version, "580.65.06");
  return 0;
}
#ifndef OLD
int nvmlDeviceGetTotalEnergyConsumption(nvmlDevice_t asked, unsigned long long *millijoules) {
  if (asked != &device) return 2;
  *millijoules = energy += 1500;
  return 0;
}
int nvmlDeviceGetCurrentClocksThrottleReasons(nvmlDevice_t asked, unsigned long long *reasons) {
  if (asked != &device) return 2;
  *reasons = REASONS;
  return 0;
}
#endif
"""


@pytest.fixture
def nvml(library, monkeypatch):
    """NVIDIA's package, as if a driver were there that was built with some flags."""
    pynvml = pytest.importorskip("pynvml")

    def build(*flags: str):
        monkeypatch.setattr(pynvml, "nvmlLib", library(NVML, *flags))
        monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
        return pynvml

    return build


def test_a_gpu_reports_its_energy_its_slowdowns_and_its_driver(nvml):
    gpu = NvidiaGpu(nvml("-DREASONS=0x44"), "GPU-1")
    assert gpu.driver == "580.65.06"
    assert gpu.slowed is True
    with of_gpu(gpu) as meter:
        assert meter.covers == "GPU board"
        assert meter.joules() >= 1.5
    assert NvidiaGpu(nvml("-DREASONS=0x5"), "GPU-1").slowed is False


def test_a_gpu_that_is_not_known_or_a_driver_without_the_function_reports_nothing(nvml):
    pynvml = nvml("-DREASONS=0")
    with pytest.raises(pynvml.NVMLError):
        NvidiaGpu(pynvml, "GPU-2")
    gpu = NvidiaGpu(nvml("-DOLD"), "GPU-1")
    assert gpu.slowed is None
    assert of_gpu(gpu) is None


def test_without_a_gpu_a_driver_or_the_package_nothing_is_reported(monkeypatch):
    assert is_cuda() or nvidia.nvidia_gpu() is None
    monkeypatch.setattr(nvidia, "gpu", lambda: Gpu("a GPU", None, None, False, "GPU-1"))
    monkeypatch.setattr(nvidia, "is_cuda", lambda: True)
    assert nvidia.nvidia_gpu() is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert nvidia.nvidia_gpu() is None


# Words of 8 bytes in struct rusage_info_v6, counted in xnu's bsd/sys/resource.h; version 4 ends behind 37 of them.
RUSAGE = r"""
#include <stdint.h>
int proc_pid_rusage(int pid, int flavor, void *buffer) {
  uint64_t *words = buffer;
  if (flavor > NEWEST || pid <= 1) return -1;
  words[8] = 3000;  /* ri_resident_size */
  words[9] = 1000;  /* ri_phys_footprint */
  words[30] = 2000; /* ri_lifetime_max_phys_footprint */
  words[36] = 7;    /* ri_runnable_time */
  if (flavor == 6) words[42] = 5000000000ULL; /* ri_energy_nj */
  return 0;
}
"""


@pytest.mark.parametrize(("newest", "nanojoules"), [(6, 5_000_000_000), (4, 0)])
def test_macos_fills_the_structure_of_its_header(library, newest, nanojoules):
    usage = resource_usage(library(RUSAGE, f"-DNEWEST={newest}"))
    assert (usage.ri_resident_size, usage.ri_phys_footprint) == (3000, 1000)
    assert (usage.ri_lifetime_max_phys_footprint, usage.ri_runnable_time) == (2000, 7)
    assert usage.ri_energy_nj == nanojoules


def test_the_structure_has_the_size_of_the_header():
    assert ctypes.sizeof(ResourceUsage) == 464
    assert ResourceUsage.ri_flags.offset == 296  # where version 4 ends
    assert ResourceUsage.ri_energy_nj.offset == 336


def test_a_kernel_without_the_call_tells_nothing(library):
    assert resource_usage(library(RUSAGE, "-DNEWEST=3")) is None
    assert resource_usage(library("int other;")) is None
