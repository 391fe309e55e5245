"""What several test files share: the converted demo model, and a way to run the real command."""

import gc
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from functools import cache
from io import BytesIO, TextIOWrapper
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings

# Before NumPy and the kernels are imported: with more threads than free cores, BLAS waits in loops, six times as long
# as it computes, and the kernels' threads wait for each other. Tests of threads ask for more.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("GPTOSS_MLX_THREADS", "1")

import zygote
from checkpoints import config_of, tensors_of, write_checkpoint, write_safetensors
from gptoss_convert import convert
from gptoss_mlx import device, kernels
from gptoss_mlx.demo import CHECKPOINT

# A shell starts what runs in its background with Ctrl-C ignored, and nohup a program with SIGHUP ignored: so would be
# every program that a test interrupts, or whose window it closes.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# `--hypothesis-profile=thorough` looks at more examples.
settings.register_profile("daily", max_examples=20, deadline=None)
settings.register_profile("thorough", max_examples=150, deadline=None)
settings.load_profile("daily")


LARGE_PACKAGES = re.compile(r"^ *(?:from|import) (?:mlx_lm|transformers|anthropic|openai)", re.MULTILINE)


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory) -> Path:
    """The embedded checkpoint, converted with the default recipe."""
    folder = tmp_path_factory.mktemp("demo") / "model"
    convert(CHECKPOINT, folder)
    return folder


@pytest.fixture(scope="session")
def endless_folder(tmp_path_factory) -> Path:
    """A random model that, greedy, never stops: its stop tokens have the logit 0, and the best of 300 is above that."""
    root = tmp_path_factory.mktemp("endless")
    source = write_checkpoint(root / "source", config_of(), shards=1)
    tensors = tensors_of(config_of())
    tensors["lm_head.weight"][0][256:264] = 0
    write_safetensors(next(source.glob("*.safetensors")), tensors)
    convert(source, root / "model", "mxfp4-bf16")
    return root / "model"


@pytest.fixture(params=["kernels", "mlx"])
def computing(request):
    """With the kernels where there are any, and without."""
    if request.param == "mlx":
        with kernels.off():
            yield
    elif kernels.native():
        yield
    else:
        pytest.skip(kernels.why_not_native())


@pytest.fixture
def look_ahead(monkeypatch):
    """Compute a token ahead, as on a GPU, or do not."""

    def look_ahead(ahead: bool) -> None:
        here = device.backend()
        monkeypatch.setitem(device.BACKENDS, here.name, replace(here, looks_ahead=ahead))

    return look_ahead


@pytest.fixture(scope="session")
def environment(tmp_path_factory) -> dict[str, str]:
    """An environment with a cache folder of its own, no config file, and no terminal settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GPTOSS_", "HF_"))}
    home = str(tmp_path_factory.mktemp("home"))
    ours = {"GPTOSS_MLX_HOME": home, "GPTOSS_MLX_CONFIG": os.devnull, "GPTOSS_MLX_THREADS": "1"}
    return kept | ours | {"TERM": "xterm", "COLUMNS": "100"}


@pytest.fixture(scope="session")
def command() -> list[str]:
    return [sys.executable, "-m", "gptoss_mlx"]


@pytest.fixture
def run(environment):
    """Run `gptoss-mlx ARGS` to its end, without a terminal."""

    def run(*args, stdin: str = "", **changes: str) -> subprocess.CompletedProcess[str]:
        words, variables = ["-m", "gptoss_mlx", *map(str, args)], environment | changes
        if zygote.shared().fits(variables):
            return zygote.shared().run(words, stdin, variables, timeout=100)
        return subprocess.run(
            [sys.executable, *words], input=stdin, capture_output=True, text=True, env=variables, timeout=100
        )

    return run


@pytest.fixture
def run_here(environment, monkeypatch, capsys):
    """The same in this process: where the process is not the point, it takes a tenth of the time."""

    def run_here(*args, stdin: str = "", **changes: str) -> subprocess.CompletedProcess[str]:
        from gptoss_mlx.cli import main

        words = ["gptoss-mlx", *map(str, args)]
        with monkeypatch.context() as patch:
            for name, value in (environment | changes).items():
                patch.setenv(name, value)
            patch.setattr(sys, "argv", words)
            patch.setattr(sys, "stdin", TextIOWrapper(BytesIO(stdin.encode())))
            with pytest.raises(SystemExit) as end:
                main()
        return subprocess.CompletedProcess(words, end.value.code or 0, *capsys.readouterr())

    return run_here


def pytest_configure(config: pytest.Config) -> None:
    gc.disable()  # while tests are collected
    zygote.folder = getattr(config, "workerinput", {}).get("zygotes", "")
    if not zygote.folder:
        folder = TemporaryDirectory()
        config.add_cleanup(folder.cleanup)
        zygote.folder = folder.name


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node) -> None:
    node.workerinput["zygotes"] = zygote.folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """First, and so in one process of several, what imports packages of which each takes seconds."""

    @cache
    def comes_later(path: Path) -> bool:
        return not LARGE_PACKAGES.search(path.read_text(encoding="utf-8"))

    items.sort(key=lambda item: comes_later(item.path) and not {"openai", "of_openai"} & set(item.fixturenames))


def pytest_collection_finish() -> None:
    """What is collected stays to the end: no garbage collection need look at it."""
    gc.freeze()
    gc.enable()


def pytest_sessionfinish() -> None:
    """What has been looked through once need not be again, ten times, by what pytest does at its end."""
    gc.collect()
    gc.freeze()


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Three for two cores: many tests wait, for a terminal or for a process to end."""
    return 3 * (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1) // 2
