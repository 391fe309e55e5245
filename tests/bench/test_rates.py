"""What the machine gives at most, against a C program that shares nothing with the kernels (rates.c)."""

import os
import platform
import shutil
import subprocess
import time
from pathlib import Path

import mlx.core as mx
import pytest

from gptoss_mlx import kernels
from gptoss_mlx.bench import roofline
from gptoss_mlx.bench.results import Rates

NEAR = 0.1  # of each other, on a machine that does nothing else
ROUGHLY = 0.4  # on any machine: a wrong count of operations or threads is a factor of two
PATIENCE = 60  # seconds; other programs can only make a rate smaller, so that the best of many rounds is what counts


@pytest.fixture(scope="module")
def independent(tmp_path_factory) -> list[str]:
    if kernels.native() is None or not (compiler := shutil.which("cc")):
        pytest.skip("needs the kernels and a C compiler")
    program = tmp_path_factory.mktemp("rates") / "rates"
    source = Path(__file__).with_name("rates.c")
    wide = ["-mprefer-vector-width=512"] if platform.machine() == "x86_64" else []
    subprocess.run([compiler, "-O3", "-march=native", *wide, "-pthread", source, "-o", program], check=True)
    return [str(program), str(kernels.native().threads())]


@pytest.mark.timing
@pytest.mark.parametrize("near", [ROUGHLY, pytest.param(NEAR, marks=pytest.mark.slow)])
def test_rates_are_those_of_an_independent_program(independent, near):
    ours, theirs = [0.0] * 3, [0.0] * 3
    ends = time.monotonic() + PATIENCE
    while time.monotonic() < ends:
        given = subprocess.run(independent, check=True, capture_output=True, text=True).stdout.split()
        theirs = list(map(max, theirs, map(float, given)))
        measured = roofline.measured_rates(2**40)
        ours = list(map(max, ours, (measured.bandwidth, measured.matrix, measured.vector)))
        compared = [one / other for one, other in zip(ours, theirs, strict=True) if other]
        if all(1 - near < ratio < 1 / (1 - near) for ratio in compared):
            break
    assert len(compared) == 3 or not theirs[1]
    assert all(1 - near < ratio < 1 / (1 - near) for ratio in compared), (ours, theirs)


@pytest.mark.timing
def test_rates_grow_with_the_threads():
    if kernels.native() is None or (os.cpu_count() or 1) < 2:
        pytest.skip("needs the kernels and two cores")
    before = kernels.native().threads()
    try:
        best = {}
        for threads in (1, 2) * 4:
            kernels.set_threads(threads)
            best[threads] = max(best.get(threads, 0), kernels.product_rates()[0])
    finally:
        kernels.set_threads(before)
    assert 1.3 < best[2] / best[1] < 2.5


def test_without_kernels_there_is_no_limit_on_a_cpu():
    if mx.default_device().type == mx.DeviceType.gpu:
        pytest.skip("a GPU has rates of its own")
    with kernels.off():
        assert roofline.measured_rates(2**30) == Rates(None, None, None)


def test_the_rates_of_a_gpu_are_those_of_products(monkeypatch):
    """The same operations, on whatever there is: what they count, not how fast they are."""
    monkeypatch.setattr(roofline, "GPU_MATRIX_SIDE", 64)
    monkeypatch.setattr(roofline, "MIN_GPU_READ_BYTES", 2**20)
    monkeypatch.setattr(roofline, "GPU_READ_BYTES", 2**20)
    seconds = []
    monkeypatch.setattr(
        roofline, "_best_rate", lambda amount, work: seconds.append((amount, mx.eval(work()))) or amount
    )
    assert roofline._gpu_product_rate() == 8 * 2 * 64**3
    assert roofline._gpu_bandwidth(2**20) == 8 * 2**20
