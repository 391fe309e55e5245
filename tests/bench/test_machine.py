"""What is told of a machine: real repositories, real processes, and trees of files as Linux lays them out."""

import json
import mmap
import os
import platform
import socket
import subprocess
import time
from dataclasses import asdict
from getpass import getuser
from pathlib import Path

import pytest

from gptoss_mlx.bench import machine
from gptoss_mlx.bench.machine import MemorySampler, Watch, commit, describe, processor
from gptoss_mlx.memory.system import process_memory

MIB = 2**20


def write(root: Path, files: dict[str, object]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # Whole at once, as the system's own are: a thread may be reading them.
        new = path.with_name(f".{path.name}")
        new.write_text(f"{content}\n")
        new.replace(path)
    return root


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Make some programs the only ones that there are; each prints a text."""

    def make(**answers: str) -> None:
        for name, answer in answers.items():
            program = write(tmp_path / "bin", {name: f'#!/bin/sh\n/bin/cat <<"END"\n{answer}\nEND'}) / name
            program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))

    return make


# The machine


def test_this_machine_is_described_without_a_name_of_it_or_of_a_person():
    found = describe()
    assert found.cores >= 1
    assert found.memory > 2**28
    assert {"gptoss-mlx", "mlx", "python"} <= found.versions.keys()
    told = json.dumps(asdict(found))
    assert socket.gethostname() not in told.split('"')
    assert str(Path.home()) not in told
    assert getuser() not in (found.system, found.processor, found.device)


def test_a_gpu_does_without_the_kernels_for_processors(monkeypatch):
    import mlx.core as mx

    if mx.default_device().type == mx.DeviceType.cpu and describe().kernels:
        monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    assert (describe().device != "CPU", describe().kernels) == (True, None)


@pytest.mark.parametrize(
    ("system", "program", "answer", "name"),
    [
        ("linux", "lscpu", "Vendor ID: X\nModel name:   Some CPU @ 3 GHz\nBIOS Model name: other", "Some CPU @ 3 GHz"),
        ("linux", "lscpu", "  Model name:  Cortex-A55\n    Thread(s): 1\n  Model name:  A76", "Cortex-A55, A76"),
        ("linux", "lscpu", "Vendor ID: X", platform.machine()),
        ("linux", "sysctl", "Apple M4", platform.machine()),
        ("darwin", "sysctl", "Apple M4", "Apple M4"),
    ],
)
def test_a_processor_has_the_name_that_its_system_knows(programs, system, program, answer, name, monkeypatch):
    monkeypatch.setattr(machine.sys, "platform", system)
    programs(**{program: answer})
    assert processor() == name


# The commit


def git(folder: Path, *arguments: str) -> str:
    settings = ["-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "init.defaultBranch=main"]
    command = ["git", *settings, "-C", str(folder), *arguments]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return subprocess.run(command, check=True, capture_output=True, text=True, env=clean).stdout.strip()


@pytest.fixture
def checkout(tmp_path) -> Path:
    folder = tmp_path / "checkout"
    write(folder, {"pyproject.toml": '[project]\nname = "gptoss-mlx"', "gptoss_mlx/__init__.py": "", "README.md": "a"})
    git(folder, "init")
    git(folder, "add", ".")
    git(folder, "commit", "-m", "first")
    return folder


def test_the_commit_is_that_of_the_checkout_and_says_what_was_changed(checkout, tmp_path, monkeypatch):
    first = git(checkout, "rev-parse", "HEAD")
    assert commit(checkout / "gptoss_mlx") == first
    (checkout / "notes").write_text("not in the repository")
    assert commit(checkout / "gptoss_mlx") == first

    git(checkout, "worktree", "add", str(tmp_path / "tree"), "-b", "other")
    other = git(tmp_path / "tree", "commit", "--allow-empty", "-m", "second") and git(
        tmp_path / "tree", "rev-parse", "HEAD"
    )
    assert commit(tmp_path / "tree" / "gptoss_mlx") == other != first

    monkeypatch.setenv("GIT_DIR", str(tmp_path / "tree" / ".git"))  # as in a hook
    (checkout / "README.md").write_text("b")
    assert commit(checkout / "gptoss_mlx") == f"{first}-dirty"


def test_a_repository_around_an_installed_package_is_not_asked(checkout, no_direct_url):
    installed = checkout / ".venv/lib/python3/site-packages/gptoss_mlx"
    installed.mkdir(parents=True)
    assert commit(installed) is None
    assert commit(checkout / "gptoss_mlx") is not None
    (checkout / "pyproject.toml").write_text('[project]\nname = "another"\n')
    assert commit(checkout / "gptoss_mlx") is None


def test_a_broken_repository_or_one_without_a_commit_has_none(checkout, tmp_path):
    (checkout / ".git" / "HEAD").write_text("nonsense")
    assert commit(checkout / "gptoss_mlx") is None
    unpacked = write(
        checkout / "inner", {"pyproject.toml": '[project]\nname = "gptoss-mlx"', ".git": "gitdir: nowhere"}
    )
    assert commit(unpacked / "gptoss_mlx") is None
    new = write(tmp_path / "new", {"pyproject.toml": '[project]\nname = "gptoss-mlx"'})
    git(new, "init")
    assert commit(new / "gptoss_mlx") is None


def test_without_git_there_is_no_commit_and_no_error(checkout, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit(checkout / "gptoss_mlx") is None


def test_a_git_that_never_answers_is_not_waited_for(checkout, tmp_path, monkeypatch):
    slow = write(tmp_path / "bin", {"git": "#!/bin/sh\nexec sleep 60"}) / "git"
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{slow.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(machine, "SECONDS", 0.2)
    started = time.monotonic()
    assert commit(checkout / "gptoss_mlx") is None
    assert time.monotonic() - started < 10


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Lays out what pip notes of an installation, before everything else on the path."""

    def install(direct_url: str | None) -> Path:
        site = tmp_path / "site"
        noted = {"gptoss_mlx-0.1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: gptoss-mlx\nVersion: 0.1.0"}
        if direct_url is not None:
            noted["gptoss_mlx-0.1.0.dist-info/direct_url.json"] = direct_url
        write(site, noted)
        monkeypatch.syspath_prepend(str(site))
        return site / "gptoss_mlx"

    return install


@pytest.fixture
def no_direct_url(installed):
    return installed(None)


SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("direct_url", "expected"),
    [
        (json.dumps({"url": "https://name:word@example.org/x", "vcs_info": {"vcs": "git", "commit_id": SHA}}), SHA),
        (json.dumps({"url": "file:///x", "dir_info": {"editable": True}}), None),
        (json.dumps({"vcs_info": {"commit_id": "main; of\x1b[31m"}}), None),
        (json.dumps({"vcs_info": {"commit_id": 12345678}}), None),
        (json.dumps({"vcs_info": []}), None),
        (json.dumps([]), None),
        ("{", None),
        ("[" * 100_000, None),
        ("", None),
        (None, None),
    ],
)
def test_the_commit_of_an_installation_is_the_one_that_pip_noted(installed, direct_url, expected):
    assert commit(installed(direct_url)) == expected


# Conditions

CPU = "sys/devices/system/cpu"
BUSY = {
    "proc/stat": "cpu  1000 0 500 8000 100 0 50 350 77 0\ncpu0 1 2 3",
    f"{CPU}/cpu0/thermal_throttle/core_throttle_count": 3,
    f"{CPU}/cpu1/thermal_throttle/core_throttle_count": 4,
    f"{CPU}/cpu1/thermal_throttle/package_throttle_count": 0,
    f"{CPU}/cpu0/cpufreq/scaling_cur_freq": 800_000,
    f"{CPU}/cpu0/cpufreq/cpuinfo_max_freq": 4_000_000,
    f"{CPU}/cpu1/cpufreq/scaling_cur_freq": 1_500_000,
    f"{CPU}/cpu1/cpufreq/cpuinfo_max_freq": 2_000_000,
    "sys/class/power_supply/AC/type": "Mains",
    "sys/class/power_supply/AC/online": 1,
}


def test_conditions_are_what_changed_between_the_start_and_the_end(tmp_path):
    watch = Watch(write(tmp_path, BUSY))
    write(
        tmp_path,
        {
            "proc/stat": "cpu  1600 0 500 8100 100 0 50 650 99 0",
            f"{CPU}/cpu0/thermal_throttle/core_throttle_count": 10,
        },
    )
    found = watch.conditions()
    assert found.load_average == pytest.approx(os.getloadavg()[0], abs=5)
    assert found.stolen == pytest.approx(300 / 1000)
    assert found.throttled == 7
    assert found.clock == pytest.approx(0.75)
    assert found.power == "mains"


def test_what_the_system_does_not_tell_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(machine.sys, "platform", "linux")
    found = Watch(tmp_path).conditions()
    assert (found.stolen, found.throttled, found.clock, found.power, found.gpu_slowed) == (None,) * 5
    write(tmp_path, {"proc/stat": "cpu 1 2 x", f"{CPU}/cpu0/cpufreq/scaling_cur_freq": "<unknown>"})
    found = Watch(tmp_path).conditions()
    assert (found.stolen, found.clock) == (None, None)


def test_the_conditions_of_this_machine_can_be_asked():
    found = Watch().conditions()
    assert found.stolen is None or 0 <= found.stolen <= 1
    assert found.clock is None or found.clock > 0
    assert found.power in ("mains", "battery", None)


@pytest.mark.parametrize(
    ("answer", "power"),
    [
        ("Now drawing from 'Battery Power'\n -InternalBattery-0 (id=1)", "battery"),
        ("Now drawing from 'AC Power'", "mains"),
        ("something else", None),
    ],
)
def test_what_pmset_prints_on_a_mac(tmp_path, programs, monkeypatch, answer, power):
    programs(pmset=answer)
    monkeypatch.setattr(machine.sys, "platform", "darwin")
    assert Watch(tmp_path / "nothing").conditions().power == power


# Memory


def test_anonymous_and_mapped_memory_are_told_apart(tmp_path):
    before = process_memory()
    block = bytearray(b"x") * (64 * MIB)
    after = process_memory()
    assert after.anonymous - before.anonymous > 60 * MIB
    assert after.peak >= after.anonymous + after.mapped - 4 * MIB
    del block

    (tmp_path / "file").write_bytes(bytes(64 * MIB))
    with (tmp_path / "file").open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as pages:
        before = process_memory()
        assert sum(pages[i] for i in range(0, 64 * MIB, 4096)) == 0
        assert process_memory().mapped - before.mapped > 60 * MIB


def test_a_sampler_sees_what_is_gone_before_it_is_asked(monkeypatch):
    monkeypatch.setattr(machine, "SAMPLE_SECONDS", 0.05)
    before = process_memory()
    with MemorySampler() as sampler:
        block = bytearray(b"x") * (200 * MIB)
        time.sleep(0.3)
        del block
    assert process_memory().anonymous - before.anonymous < 100 * MIB
    assert sampler.max().anonymous - before.anonymous > 190 * MIB


def test_a_sampler_sees_what_there_is_when_it_is_asked():
    sampler = MemorySampler()
    block = bytearray(b"x") * (64 * MIB)
    now = process_memory()
    assert sampler.max().anonymous > now.anonymous - 4 * MIB
    del block
