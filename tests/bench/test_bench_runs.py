"""The real command beside other runtimes, with a config file, and interrupted at any moment."""

import json
import os
import random
import re
import signal
import time

import pytest

import zygote
from bench.test_bench import QUICK, assert_refused
from gptoss_mlx.bench import measure
from gptoss_mlx.bench.peers import MlxLm, Reading

MAX_SECONDS = 20  # of the default bench


@pytest.fixture(params=["a stand-in", pytest.param("the real one", marks=pytest.mark.slow)])
def mlx_lm(request, monkeypatch):
    """MLX-LM, which takes seconds to start, or what it would report: tests/bench/test_peers.py has the real one too."""
    if request.param == "a stand-in":
        reading = lambda self, run: Reading("1.0", dict.fromkeys(self.points, 50.0), self.facts)  # noqa: E731
        monkeypatch.setattr(MlxLm, "measure", reading)


class TestAgainst:
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

    def test_defaults_are_used_and_told(self, bench, demo_folder, tmp_path, monkeypatch):
        monkeypatch.delenv("GPTOSS_MLX_THREADS")  # it would be told too
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
    def test_a_comparison_of_which_it_is_no_part(self, bench, demo_folder, tmp_path):
        """In the comparison's own runs, `against` would begin a comparison in a comparison, without an end."""
        text = 'against = "mlx-lm"\nprofile = true\nsubmit = true'
        options = (
            "--prompt",
            8,
            "--generate",
            4,
            "--repeat",
            1,
            "--threads",
            1,
            "--memory",
            "300MB",
            "--format",
            "json",
        )
        done = self.configured(bench, demo_folder, tmp_path, text, "--against", "mlx-lm", *options)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["peer"] == "mlx-lm"
        assert [speed["name"] for speed in found["speeds"]] == ["prefill 8 at 0", "decode 4 at 8"]
        assert found["ours"]["setup"]["threads"] in (1, None)
        assert found["ours"]["start"] is None
        assert found["ours"]["profile"] is None

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
import os, sys
from gptoss_mlx.cli import main
os.setsid()  # a group of its own, to be interrupted as a whole
print("imported", file=sys.stderr, flush=True)
main()
"""


class TestInterrupts:
    """Moments are drawn anew each time, and more of them in the slow tests: each has to be survived."""

    @pytest.fixture
    def interrupted(self, environment, demo_folder):
        def interrupted(options: tuple[str, ...], moment: float, presses: int = 1, whole_group: bool = False):
            process = zygote.shared().open(["-c", IMPORTED, "bench", str(demo_folder), *options], environment)
            try:
                assert process.stderr.readline() == "imported\n"
                time.sleep(moment)
                for _ in range(presses):
                    if whole_group:
                        os.killpg(process.pid, signal.SIGINT)
                    else:
                        process.send_signal(signal.SIGINT)
                    time.sleep(0.05)
                output, errors = process.communicate()
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
        def next_step(bench, what):
            if what == "decode 1 at 1, run 1 of 7":
                raise KeyboardInterrupt

        monkeypatch.setattr(measure._Bench, "_tell", next_step)
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
