"""The command in this process, for the tests of what it prints and refuses."""

import os
import subprocess
import sys

import pytest

from gptoss_mlx.bench import measure, stages
from gptoss_mlx.bench.results import Rates, Spread
from gptoss_mlx.cli import main


@pytest.fixture
def bench(monkeypatch, capsys):
    """`gptoss-mlx bench ARGS` to its end in this process, on a machine whose rates and whose new processes take no time
    to measure, and with short runs."""
    seconds = Spread.of([0.1, 0.2, 0.3])
    monkeypatch.setattr(measure, "measured_rates", lambda room: Rates(1e12, 1e15, 1e15))
    monkeypatch.setattr(measure, "cold_starts", lambda plan, tokens: (seconds, seconds))
    monkeypatch.setattr(measure, "MIN_SECONDS", 0)
    monkeypatch.setattr(stages, "ROUNDS", 1)

    def bench(*args, **changes: str) -> subprocess.CompletedProcess[str]:
        for name, value in ({"GPTOSS_MLX_CONFIG": os.devnull, "COLUMNS": "100"} | changes).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["gptoss-mlx", "bench", *map(str, args)])
        with pytest.raises(SystemExit) as ended:
            main()
        output, errors = capsys.readouterr()
        return subprocess.CompletedProcess(args, ended.value.code, output, errors)

    return bench
