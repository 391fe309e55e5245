"""The real command: what it prints and writes, and what it refuses."""

import csv
import io
import json
import os
import re
import shlex
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from bench.test_random_weights import SMALL
from gptoss_convert.random_weights import RandomShape
from gptoss_mlx import kernels
from gptoss_mlx.bench import first_token, measure
from gptoss_mlx.bench.baseline import read_baseline
from gptoss_mlx.cli import cli, main
from gptoss_mlx.memory.plan import BudgetTooSmall, Device, make_plan

SIZES = ("--prompt", "8", "--generate", "4", "--depth", "0,40", "--repeat", "2")
QUICK = ("--prompt", "8", "--generate", "4", "--depth", "0", "--repeat", "1", "--no-start")
NAMES = ["prefill 8 at 0", "decode 4 at 0", "prefill 8 at 40", "decode 4 at 40"]


@pytest.fixture(scope="module")
def measured(demo_folder, tmp_path_factory) -> Path:
    """The results of one run, as JSON in a file."""
    path = tmp_path_factory.mktemp("results") / "results.json"
    words = ["gptoss-mlx", "bench", str(demo_folder), *SIZES, "--profile", "--format", "json"]
    with pytest.MonkeyPatch.context() as patch, path.open("w") as file, redirect_stdout(file):
        patch.setenv("GPTOSS_MLX_CONFIG", os.devnull)
        patch.setattr(sys, "argv", words)
        patch.setattr(measure, "MIN_SECONDS", 0.02)
        patch.setattr(first_token, "STARTS", 1)
        patch.setattr(kernels, "BANDWIDTH_BYTES", kernels.MIN_BANDWIDTH_BYTES)
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == 0
    return path


@pytest.fixture(scope="module")
def paged(demo_folder) -> tuple[str, ...]:
    """Options with which some experts are not in memory."""
    with pytest.raises(BudgetTooSmall) as caught:
        make_plan(demo_folder, Device.here(), memory=2**20, context=1024)
    return ("--memory", str(caught.value.smallest + 100_000), "--context", "1024")


def assert_refused(done, *parts: str, status: int = 1) -> None:
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert line.lower().startswith("error: ")
    assert status == 2 or len(done.stderr.strip().splitlines()) == 1, done.stderr
    for part in parts:
        assert part in line, line


class TestResults:
    def test_json_is_a_baseline(self, measured):
        results = read_baseline(measured)
        assert [speed.name for speed in results.speeds] == NAMES
        assert results.finished
        assert results.start.prompt == 8
        assert results.start.load_seconds.median < results.start.cold_seconds.median
        assert results.start.warm_seconds.median < results.start.cold_seconds.median
        assert results.profile.depth == 40
        assert results.setup.repeat == 2
        assert all(speed.tokens_per_second.runs == 2 for speed in results.speeds)
        assert results.model.name == "model"
        assert results.model.recipe == "mxfp4-q4"

    def test_percentiles_and_rates_fit_each_other(self, measured):
        for speed in read_baseline(measured).speeds:
            spread, tokens = speed.tokens_per_second, speed.token_seconds
            assert spread.least <= spread.median <= spread.most
            assert (speed.kind == "decode") == bool(tokens)
            if tokens:
                known = [part for part in (tokens.p50, tokens.p90, tokens.p99, tokens.most) if part is not None]
                assert known == sorted(known)
                assert 1 / tokens.most <= spread.least
            if speed.limit:
                assert speed.share < 1  # nothing is faster than its limit

    def test_only_the_command_has_a_path(self, measured, demo_folder):
        data = json.loads(measured.read_text())
        command = data.pop("command")
        assert str(demo_folder) in command
        assert str(demo_folder.parent) not in json.dumps(data)
        assert str(Path.home()) not in json.dumps(data)

    def test_its_command_measures_the_same(self, bench, measured):
        """Also with other defaults in the config file."""
        told = json.loads(measured.read_text())["command"]
        assert told.startswith("gptoss-mlx bench ")
        words = shlex.split(told)[1:]
        with cli.commands["bench"].make_context("bench", words[1:]) as context:
            assert context.params["depth"] == (0, 40)
            assert context.params["profile"] is True
        done = bench(*words[1:], "--format", "json")
        again = json.loads(done.stdout)
        assert [speed["name"] for speed in again["speeds"]] == NAMES
        assert again["command"] == told

    def test_table(self, bench, demo_folder):
        done = bench(demo_folder, *SIZES, "--profile")
        assert (done.returncode, done.stderr) == (0, "")
        for part in (*NAMES, "mxfp4-q4", "new process to first token", "attention", "in all", "median of 2 runs"):
            assert part in done.stdout

    def test_csv(self, bench, demo_folder):
        done = bench(demo_folder, *QUICK, "--format", "csv")
        rows = list(csv.DictReader(io.StringIO(done.stdout)))
        assert [row["kind"] for row in rows] == ["prefill", "decode"]
        assert all(float(row["tokens_per_second.median"]) > 0 for row in rows)

    def test_markdown_plot_and_report(self, bench, demo_folder, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        options = ("--no-start", "--format", "markdown", "--submit", "--plot", "plot.svg")
        done = bench(demo_folder, *SIZES, *options)
        assert done.returncode == 0, done.stderr
        assert "| prefill 8 at 40 |" in done.stdout
        assert (tmp_path / "plot.svg").read_text().startswith("<?xml")
        (report,) = tmp_path.glob("gptoss-mlx-bench-*.md")
        assert re.fullmatch(r"gptoss-mlx-bench-\d{4}-\d\d-\d\d\.md", report.name)
        assert done.stderr == f"the report is in {report.name}: paste it into an issue\n"
        text = report.read_text()
        assert "| prefill 8 at 40 |" in text
        runtime = text[text.index("### Runtime\n\n```text\n") :]
        for name in ("gptoss-mlx ", "device ", "packages ", "MLX's environment ", "power ", "files ", "memory of MLX "):
            assert f"\n{name}" in runtime
        assert runtime.endswith("\n```\n")
        assert str(demo_folder.parent) not in text
        assert str(tmp_path) not in text
        assert {path.name for path in tmp_path.iterdir()} == {"plot.svg", report.name}

    @pytest.mark.slow
    def test_plot_in_png(self, bench, demo_folder, tmp_path):
        assert bench(demo_folder, *QUICK, "--plot", tmp_path / "plot.png").returncode == 0
        assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


class TestSizes:
    def results(self, done):
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def names(self, done):
        return [speed["name"] for speed in self.results(done)["speeds"]]

    def test_lists_and_repeated_options(self, bench, demo_folder):
        options = ("--prompt", "4, 8", "--generate", 0, "--depth", "50,0", "--depth", 20, "--depth", 0, "--repeat", 1)
        done = bench(demo_folder, *options, "--no-start", "--format", "json")
        assert self.names(done) == [f"prefill {n} at {depth}" for depth in (0, 20, 50) for n in (4, 8)]
        assert "--prompt 4,8 --generate 0 --depth 50,0,20 --repeat 1 --no-start" in json.loads(done.stdout)["command"]

    def test_without_prompts(self, bench, demo_folder):
        options = ("--prompt", 0, "--generate", 3, "--depth", 0, "--repeat", 1)
        results = self.results(bench(demo_folder, *options, "--format", "json"))
        assert [speed["name"] for speed in results["speeds"]] == ["decode 3 at 0"]
        assert results["start"]["prompt"] == 1

    def test_nothing_to_measure(self, bench, demo_folder):
        done = bench(demo_folder, "--prompt", 0, "--generate", 0)
        assert_refused(done, "leave nothing to measure", status=2)

    @pytest.mark.parametrize("text", ["", "x", "1,", "1,,2", "-1", "1.5"])
    def test_what_is_no_number(self, bench, demo_folder, text):
        assert_refused(bench(demo_folder, "--depth", text), "--depth", status=2)

    def test_more_than_the_context(self, bench, demo_folder):
        done = bench(demo_folder, *QUICK, "--depth", 1000, "--context", 500)
        assert_refused(done, "1,017 tokens of context are needed, and this run has 500: give --context 1017, or less")
        done = bench(demo_folder, *QUICK, "--depth", 1000, "--context", 1017)
        assert done.returncode == 0

    def test_more_than_the_model_has(self, bench, demo_folder):
        done = bench(demo_folder, *QUICK, "--depth", 131_072)
        assert_refused(done, "this model has 131,072: give less --depth")

    def test_more_than_memory_has(self, bench, demo_folder, paged):
        done = bench(demo_folder, *QUICK, "--depth", 20_000, *paged[:2])
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert "give more --memory, or less --depth" in done.stderr.splitlines()[-1]

    def test_a_context_that_grows(self, bench, demo_folder, monkeypatch):
        """Where the usual one fits, and what is measured takes more."""
        monkeypatch.setattr(measure._Bench, "_deepened", lambda bench, snapshot, depth: snapshot)  # read nothing
        usual = make_plan(demo_folder, Device.here(), memory=66_000_000).settings.context
        options = (*QUICK, "--depth", usual, "--memory", 66_000_000, "--format", "json")
        results = self.results(bench(demo_folder, *options))
        assert results["setup"]["context"] == usual + 17
        assert "--context" not in results["command"]


class TestPaging:
    def test_experts(self, bench, demo_folder, paged):
        sizes = ("--prompt", "8", "--generate", "2", "--depth", "0", "--repeat", "1", "--no-start")
        done = bench(demo_folder, *sizes, *paged, "--format", "json")
        assert "experts paged" in done.stderr
        results = json.loads(done.stdout)
        assert results["setup"]["prompts"] == "text"
        assert results["setup"]["expert_slots"] > 0
        for speed in results["speeds"]:
            assert speed["experts"]["needed"] >= speed["experts"]["missed"] >= 0
        assert sum(speed["experts"]["bytes_read"] for speed in results["speeds"]) > 0
        shown = bench(demo_folder, *sizes, *paged).stdout
        assert "Experts, paged" in shown

    def test_routing_is_recorded_and_replayed(self, bench, demo_folder, paged, tmp_path):
        trace = tmp_path / "routing.trace"
        done = bench(demo_folder, *QUICK, "--record-routing", trace)
        assert done.returncode == 0, done.stderr
        assert trace.stat().st_size > 100
        assert_refused(bench(demo_folder, *QUICK, "--replay-routing", trace), "all experts are in memory")
        done = bench(demo_folder, *QUICK, *paged, "--replay-routing", trace, "--format", "json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["setup"]["prompts"] == "the routing of model"

    def test_what_is_no_trace(self, bench, demo_folder, measured):
        done = bench(demo_folder, *QUICK, "--replay-routing", measured)
        assert_refused(done, "as a routing trace")


class TestRandomWeights:
    @pytest.fixture
    def small(self, monkeypatch, tmp_path):
        """A published shape is a small one."""
        monkeypatch.setattr(RandomShape, "config", SMALL)
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        monkeypatch.setattr("tempfile.tempdir", None)

    @pytest.mark.usefixtures("small")
    def test_of_a_shape(self, bench, tmp_path, monkeypatch):
        monkeypatch.setattr(measure, "cold_starts", first_token.cold_starts)
        monkeypatch.setattr(first_token, "STARTS", 1)
        done = bench("--random-weights", "gpt-oss-20b:2", *QUICK, "--start", "--format", "json")
        assert done.returncode == 0, done.stderr
        results = json.loads(done.stdout)
        assert results["model"]["random_weights"] is True
        assert results["model"]["name"] == "gpt-oss-20b-layers-2"
        assert results["command"].startswith("gptoss-mlx bench --random-weights gpt-oss-20b:2 ")
        assert str(tmp_path) not in json.dumps(results)
        assert not list(tmp_path.iterdir())

    def test_what_is_no_shape(self, bench):
        assert_refused(bench("--random-weights", "gpt-oss-3b", *QUICK), "is no shape")

    @pytest.mark.slow
    def test_of_two_layers_as_they_are_published(self, run, tmp_path):
        options = ("--prompt", 64, "--generate", 8, "--depth", 0, "--repeat", 2, "--no-start", "--format", "json")
        done = run("bench", "--random-weights", "gpt-oss-20b:2", *options, TMPDIR=str(tmp_path))
        assert done.returncode == 0, done.stderr
        results = json.loads(done.stdout)
        assert 1.2e9 < results["model"]["bytes"] < 1.6e9
        assert results["speeds"][1]["work"]["bytes"] / 8 == pytest.approx(0.466e9, rel=0.02)
        assert not list(tmp_path.iterdir())


class TestBaseline:
    def changed(self, measured: Path, tmp_path: Path, factor: float, **changes) -> Path:
        """The results as if the machine had been that much faster."""
        data = json.loads(measured.read_text()) | changes
        for speed in data["speeds"]:
            for part in ("median", "least", "most"):
                speed["tokens_per_second"][part] *= factor
        path = tmp_path / "baseline.json"
        path.write_text(json.dumps(data))
        return path

    def test_slower_before(self, bench, demo_folder, measured, tmp_path):
        path = self.changed(measured, tmp_path, 1e-3)
        done = bench(demo_folder, *QUICK, "--baseline", path)
        assert done.returncode == 0, done.stderr
        assert "Beside the baseline" in done.stdout

    def test_faster_before(self, bench, demo_folder, measured, tmp_path):
        path = self.changed(measured, tmp_path, 1e3)
        done = bench(demo_folder, *QUICK, "--baseline", path, "--format", "json")
        assert done.returncode == 1
        assert json.loads(done.stdout)["finished"]
        assert "slower: decode 4 at 0" in done.stderr
        assert "Traceback" not in done.stderr
        assert bench(demo_folder, *QUICK, "--baseline", path, "--fail-below", 0).returncode == 0

    def test_another_model_is_known_before_anything_is_measured(
        self, bench, demo_folder, measured, tmp_path, monkeypatch
    ):
        data = json.loads(measured.read_text())
        path = self.changed(measured, tmp_path, 1, model=data["model"] | {"name": "another", "layers": 77})
        monkeypatch.setattr(measure, "load", None)  # whoever measures loads first
        done = bench(demo_folder, "--repeat", 1000, "--baseline", path)
        assert_refused(done, "model another, and this is model", "layers 77")

    def test_what_is_no_baseline(self, bench, demo_folder, tmp_path):
        (tmp_path / "results.json").write_text("{}")
        assert_refused(bench(demo_folder, *QUICK, "--baseline", tmp_path / "results.json"), "is no baseline")
        assert_refused(bench(demo_folder, "--baseline", tmp_path / "none"), "does not exist", status=2)
