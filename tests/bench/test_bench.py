"""The real command: what it prints and writes, what it refuses, and how it is interrupted."""

import csv
import io
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from bench.test_random_weights import SMALL
from gptoss_convert.random_weights import RandomShape
from gptoss_mlx.bench import first_token, measure, stages
from gptoss_mlx.bench.baseline import read_baseline
from gptoss_mlx.bench.peers import MlxLm, Reading
from gptoss_mlx.bench.results import Rates, Spread
from gptoss_mlx.cli import cli, main
from gptoss_mlx.memory.plan import BudgetTooSmall, Device, make_plan

SIZES = ("--prompt", "8", "--generate", "4", "--depth", "0,40", "--repeat", "2")
QUICK = ("--prompt", "8", "--generate", "4", "--depth", "0", "--repeat", "1", "--no-start")
NAMES = ["prefill 8 at 0", "decode 4 at 0", "prefill 8 at 40", "decode 4 at 40"]
MAX_SECONDS = 20  # of the default bench


@pytest.fixture(scope="module")
def measured(demo_folder, tmp_path_factory) -> Path:
    """The results of one run, as JSON in a file."""
    path = tmp_path_factory.mktemp("results") / "results.json"
    words = ["gptoss-mlx", "bench", str(demo_folder), *SIZES, "--profile", "--format", "json"]
    with pytest.MonkeyPatch.context() as patch, path.open("w") as file, redirect_stdout(file):
        patch.setenv("GPTOSS_MLX_CONFIG", os.devnull)
        patch.setattr(sys, "argv", words)
        patch.setattr(measure, "MIN_SECONDS", 0.02)
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == 0
    return path


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
        assert all(float(row["median_tokens_per_second"]) > 0 for row in rows)

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
        assert str(demo_folder.parent) not in text
        assert str(tmp_path) not in text
        assert {path.name for path in tmp_path.iterdir()} == {"plot.svg", report.name}

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


@pytest.fixture(params=["a stand-in", pytest.param("the real one", marks=pytest.mark.slow)])
def mlx_lm(request, monkeypatch):
    """MLX-LM, which takes seconds to start, or what it would report: tests/bench/test_peers.py has the real one too."""
    if request.param == "a stand-in":
        reading = lambda self, run: Reading("1.0", dict.fromkeys(self.points, 50.0), self.facts)  # noqa: E731
        monkeypatch.setattr(MlxLm, "measure", reading)


class TestAgainst:
    @pytest.mark.usefixtures("mlx_lm")
    def test_mlx_lm(self, bench, demo_folder):
        options = ("--prompt", 8, "--generate", 4, "--repeat", 1, "--threads", 1, "--format", "json")
        done = bench(demo_folder, "--against", "mlx-lm", *options)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["peer"] == "mlx-lm"
        assert [speed["name"] for speed in found["speeds"]] == ["prefill 8 at 0", "decode 4 at 8"]
        assert found["ours"]["setup"]["threads"] in (1, None)
        assert found["ours"]["start"] is None

    @pytest.mark.parametrize(
        ("options", "part"),
        [
            (("--against", "llama.cpp"), "--against llama.cpp takes --llama-bench PATH and --gguf FILE"),
            (("--gguf", "x"), "are for --against llama.cpp"),
            (("--against", "mlx-lm", "--gguf", "x"), "are for --against llama.cpp"),
            (("--against", "mlx-lm", "--profile"), "--profile is no part of a comparison with mlx-lm"),
            (("--against", "mlx-lm", "--submit"), "--submit is no part"),
            (("--against", "mlx-lm", "--plot", "x.png"), "--plot is no part"),
            (("--against", "mlx-lm", "--record-routing", "x"), "--record-routing is no part"),
            (("--against", "tensorflow"), "tensorflow"),
            (("--random-weights", "gpt-oss-20b"), "give MODEL or --random-weights, not both"),
            (("--repeat", "0"), "--repeat"),
            (("--fail-below", "-1"), "--fail-below"),
            (("--replay-routing", "no-such-file"), "no-such-file"),
            (("--format", "xml"), "xml"),
        ],
    )
    def test_wrong_combinations(self, bench, demo_folder, options, part):
        assert_refused(bench(demo_folder, *options), part, status=2)

    def test_a_plot_of_another_kind(self, bench, demo_folder):
        assert_refused(bench(demo_folder, "--plot", "x.pdf"), "a .png or a .svg file")


class TestConfigFile:
    def configured(self, bench, demo_folder, tmp_path, text, *options):
        (tmp_path / "config.toml").write_text(f"[bench]\n{text}\n")
        return bench(demo_folder, *options, GPTOSS_MLX_CONFIG=str(tmp_path / "config.toml"))

    def test_defaults_are_used_and_told(self, bench, demo_folder, tmp_path):
        text = (
            'prompt = [8]\ngenerate = ["4"]\ndepth = [30, "10,0"]\nrepeat = 1\nprofile = false\nstart = false\n'
            'memory = "1GB"\nformat = "json"'
        )
        done = self.configured(bench, demo_folder, tmp_path, text)
        assert done.returncode == 0, done.stderr
        results = json.loads(done.stdout)
        assert [speed["depth"] for speed in results["speeds"]] == [0, 0, 10, 10, 30, 30]
        words = "--prompt 8 --generate 4 --depth 30,10,0 --repeat 1 --no-start --memory 1GB"
        assert results["command"].endswith(words)

    def test_no_depths_are_the_beginning(self, bench, demo_folder, tmp_path):
        done = self.configured(bench, demo_folder, tmp_path, "depth = []", *QUICK[:4], *QUICK[6:], "--format", "json")
        assert done.returncode == 0, done.stderr
        results = json.loads(done.stdout)
        assert {speed["depth"] for speed in results["speeds"]} == {0}
        assert "--depth 0 " in results["command"]

    @pytest.mark.usefixtures("mlx_lm")
    def test_is_no_part_of_a_comparisons_own_runs(self, bench, demo_folder, tmp_path):
        """`against` would begin a comparison in a comparison, without an end."""
        text = 'against = "mlx-lm"\nprofile = true\nsubmit = true'
        options = ("--prompt", 8, "--generate", 4, "--repeat", 1, "--format", "json")
        done = self.configured(bench, demo_folder, tmp_path, text, *options)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["ours"]["profile"] is None

    def test_a_model_that_is_named_counts_before_random_weights(self, bench, demo_folder, tmp_path):
        done = self.configured(bench, demo_folder, tmp_path, 'random-weights = "gpt-oss-20b"', *QUICK)
        assert_refused(done, "give MODEL or --random-weights, not both", status=2)

    def test_is_shown(self, run, tmp_path):
        (tmp_path / "config.toml").write_text('[bench]\ndepth = [2048, 8192]\nmemory = "12GB"\n')
        done = run("config", "bench", GPTOSS_MLX_CONFIG=str(tmp_path / "config.toml"))
        assert re.search(r"^depth +\[2048, 8192\] +config file$", done.stdout, re.MULTILINE)
        assert re.search(r"^prompt +\[128, 512\] +default$", done.stdout, re.MULTILINE)


ENDLESS = {
    "start": ("--repeat", "1000000"),
    "prefill": ("--prompt", "512", "--generate", "0", "--depth", "0", "--repeat", "1000000", "--no-start"),
    "decode": ("--prompt", "0", "--generate", "64", "--depth", "0,64", "--repeat", "1000000", "--no-start"),
    "context": ("--prompt", "0", "--generate", "4", "--depth", "0,120000", "--repeat", "1", "--no-start"),
    "rates": ("--prompt", "0", "--generate", "1", "--depth", ",".join(map(str, range(400))), "--no-start"),
}


# The program, which says when Python has imported it.
IMPORTED = """
import sys
from gptoss_mlx.cli import main
print("imported", file=sys.stderr, flush=True)
main()
"""


class TestInterrupts:
    """Moments are drawn anew each time, and more of them in the slow tests: each has to be survived."""

    @pytest.fixture
    def interrupted(self, environment, demo_folder):
        def interrupted(options: tuple[str, ...], moment: float, presses: int = 1, whole_group: bool = False):
            args = [sys.executable, "-c", IMPORTED, "bench", str(demo_folder), *options]
            process = subprocess.Popen(
                args,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            try:
                assert process.stderr.readline() == "imported\n"
                time.sleep(moment)
                for _ in range(presses):
                    if whole_group:
                        os.killpg(process.pid, signal.SIGINT)
                    else:
                        process.send_signal(signal.SIGINT)
                    time.sleep(0.05)
                output, errors = process.communicate(timeout=60)
            finally:
                process.kill()
                process.wait()
            assert "Traceback" not in errors, (moment, errors)
            assert errors.splitlines()[-1] == "interrupted", (moment, errors)
            # A second one can fall when Python has ended already, and nobody hears it: to a shell it is the same.
            assert process.returncode == 130 or (presses > 1 and process.returncode == -signal.SIGINT), moment
            return output

        return interrupted

    @pytest.mark.parametrize(
        ("what", "presses", "latest"),
        [
            ("start", 1, 1.5),
            ("decode", 2, 1.5),
            *(pytest.param(what, presses, 2.5, marks=pytest.mark.slow) for what in ENDLESS for presses in (1, 2)),
        ],
    )
    def test_what_is_done_is_printed_whole(self, interrupted, what, presses, latest):
        moment = random.uniform(0.1, latest)
        output = interrupted((*ENDLESS[what], "--format", "json"), moment, presses)
        if output:
            results = json.loads(output)
            assert results["finished"] is False, moment
            assert results["speeds"] or results["start"], moment

    def test_a_terminal_interrupts_the_new_processes_too(self, interrupted):
        assert interrupted((*ENDLESS["start"], "--format", "json"), 0.4, whole_group=True) == ""

    def test_speeds_that_are_done_are_in_the_table(self, bench, demo_folder, monkeypatch):
        def next_step(agenda, what):
            if what == "decode 1 at 1, run 1 of 7":
                raise KeyboardInterrupt

        monkeypatch.setattr(measure._Agenda, "next", next_step)
        done = bench(demo_folder, *ENDLESS["rates"])
        assert (done.returncode, done.stderr) == (130, "interrupted\n")
        assert "decode 1 at 0 " in done.stdout
        assert "interrupted: what is missing here was not measured" in done.stdout

    @pytest.mark.slow
    def test_speeds_that_are_done_are_in_the_table_of_a_process(self, interrupted):
        output = interrupted(ENDLESS["rates"], 4)
        assert "decode 1 at 0 " in output
        assert "interrupted: what is missing here was not measured" in output

    def test_in_a_comparison(self, interrupted):
        assert interrupted(("--against", "mlx-lm", "--repeat", "1000"), 1.5) == ""


@pytest.mark.timing
def test_the_default_takes_less_than_twenty_seconds(run, demo_folder):
    started = time.monotonic()
    done = run("bench", demo_folder)
    seconds = time.monotonic() - started
    assert done.returncode == 0, done.stderr
    print(f"{seconds:.1f} s")
    assert seconds < MAX_SECONDS
    for name in ("prefill 128 at 0", "prefill 512 at 4,096", "decode 64 at 4,096"):
        assert name in done.stdout


def test_help_fits_a_terminal(run):
    text = run("bench", "--help").stdout
    assert all(len(line) <= 100 for line in text.splitlines())
    assert "[default: 128,512]" in text
    assert "[default: 0,4096]" in text
