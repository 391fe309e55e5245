"""Comparisons with other runtimes: real processes by turns, what they print, and how they fail.

mlx_lm.benchmark is the real one. llama-bench is real where the environment names it (GPTOSS_MLX_TEST_LLAMA_BENCH, and
GPTOSS_MLX_TEST_GGUF for a model); elsewhere a program stands in that prints what it printed once: `llama_bench.json`,
recorded with

    llama-bench -m demo.gguf -r 1 -o json -p 64 -n 16 -d 0,128 -t 2

of llama.cpp's commit 0c1e570, on the embedded checkpoint with experts in MXFP4 and the rest in Q8_0.
"""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest

from bench.examples import FULL, decode, prefill
from gptoss_mlx.bench.comparison import PairedSpeed, compare, report
from gptoss_mlx.bench.formats import as_csv, as_markdown
from gptoss_mlx.bench.peers import LlamaCpp, MlxLm
from gptoss_mlx.bench.report import print_report
from gptoss_mlx.bench.results import Grid, Point, Results
from gptoss_mlx.errors import GptOssError

GOLDEN = Path(__file__).parent / "llama_bench.json"
SIZES = Grid(prompt=(64,), generate=(16,), depth=(0, 128))

# Prints its outputs, one each time it is run, and notes how it was run. For the output None it starts another program,
# tells its id, and waits for ever.
STAND_IN = """#!{python} -IS
import pathlib, sys, time
log = pathlib.Path({log!r})
before = log.read_text().splitlines() if log.exists() else []
log.open("a").write(" ".join([{name!r}, *sys.argv[1:]]) + "\\n")
outputs = {outputs!r}
output = outputs[min(sum(line.startswith({name!r}) for line in before), len(outputs) - 1)]
if output is None:
    import subprocess
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    log.with_suffix(".child").write_text(str(child.pid))
    time.sleep(1000)
sys.stdout.write(output)
"""
# As sitecustomize it is imported before all else.
AUDIT = """
import sys

def hear(event, arguments):
    if event == "socket.getaddrinfo" or event == "socket.__new__" and arguments[1] != 1:
        open({log!r}, "a").write(event)

sys.addaudithook(hear)
"""


def results_of(speeds: dict[Point, float]) -> Results:
    """What our own run finds."""
    make = {"prefill": prefill, "decode": decode}
    found = [make[kind](tokens, depth, speed) for (kind, tokens, depth), speed in speeds.items()]
    return replace(FULL, speeds=found)


def program(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


def stand_in(folder: Path, name: str, *outputs: str | None) -> Path:
    text = STAND_IN.format(python=sys.executable, log=str(folder / "log"), name=name, outputs=outputs)
    return program(folder / name, text)


def ours(folder: Path, *runs: Results) -> list[str]:
    return [str(stand_in(folder, "ours", *(json.dumps(results.as_dict()) for results in runs)))]


def ours_at(folder: Path, *speeds: float, points: Sequence[Point] = tuple(SIZES.points)) -> list[str]:
    """With one speed for all points in each run."""
    return ours(folder, *(results_of(dict.fromkeys(points, speed)) for speed in speeds))


@pytest.fixture
def gguf(tmp_path) -> Path:
    (tmp_path / "demo.gguf").write_bytes(b"GGUF\3\0\0\0")
    return tmp_path / "demo.gguf"


def llama(folder: Path, gguf: Path, *outputs: str | None) -> LlamaCpp:
    return LlamaCpp(stand_in(folder, "theirs", *outputs), gguf, SIZES, threads=2)


def golden(**changes: object) -> str:
    return json.dumps([test | changes for test in json.loads(GOLDEN.read_text())])


@pytest.mark.parametrize("rounds", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_mlx_lm_runs_offline_on_the_same_folder(demo_folder, tmp_path, monkeypatch, rounds):
    (tmp_path / "sitecustomize.py").write_text(AUDIT.format(log=str(tmp_path / "audit")))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    peer = MlxLm(demo_folder, Grid(prompt=(16,), generate=(4,), depth=(0, 4096)))
    assert peer.ours == Grid((16,), (4,), (0, 16))
    told = []
    command = ours_at(tmp_path, 1e6, points=peer.ours.points)
    *_, last = compare(peer, command, rounds, told.append)

    assert [speed.point for speed in last.speeds] == [Point("prefill", 16, 0), Point("decode", 4, 16)]
    for speed in last.speeds:
        assert speed.ours == [1e6] * rounds
        assert all(1 < theirs < 1e6 for theirs in speed.theirs)
        assert speed.won == rounds
    assert (last.peer, last.version, last.ours.finished) == ("mlx-lm", version("mlx-lm"), True)
    assert ("operations", "kernels for avx512-vnni", "MLX's own") in last.differs
    assert not {"KV cache", "experts"} & {each.what for each in last.differs}
    assert told[:2] == [f"pair 1 of {rounds}: gptoss-mlx", f"pair 1 of {rounds}: mlx-lm"]
    assert told[3:] == ["pair 2 of 2: mlx-lm", "pair 2 of 2: gptoss-mlx"][: 2 * rounds - 2]
    assert all(line.endswith(" s, 1 to go") for line in told[2:3])
    assert not (tmp_path / "audit").exists()


def test_the_token_that_mlx_lm_counts_as_decoded_is_taken_off(demo_folder):
    def run(name, words):
        assert words[words.index("-g") + 1] == "5"  # its clock runs for four of them
        return b"Trial 1:  prompt_tps=80.000, generation_tps=50.000, peak_memory=0.003, total_time=0.1\n"

    reading = MlxLm(demo_folder, Grid((16,), (4,), ())).measure(run)
    assert reading.speeds == {Point("prefill", 16, 0): 80.0, Point("decode", 4, 16): 40.0}


@pytest.mark.parametrize(
    "line",
    [b"", b"Trial 1:  prompt_tps=nan, generation_tps=1.0, ", b"Trial 1:  prompt_tps=0.000, generation_tps=1.000, "],
)
def test_mlx_lm_without_speeds(demo_folder, line):
    with pytest.raises(GptOssError, match="no line with the speeds"):
        MlxLm(demo_folder, Grid((16,), (4,), ())).measure(lambda name, words: line)


def test_mlx_lm_needs_a_tokenizer_and_runs_no_code_of_the_folder(demo_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(demo_folder, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"auto_map": {"AutoTokenizer": "evil.py"}}))
    with pytest.raises(GptOssError, match="auto_map"):
        MlxLm(folder, SIZES)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(GptOssError, match=r"has no tokenizer.json"):
        MlxLm(folder, SIZES)


def test_pairs_alternate_and_ratios_are_of_pairs(tmp_path, gguf):
    peer = llama(tmp_path, gguf, golden(avg_ts=50.0), golden(avg_ts=100), golden(avg_ts=40.0))
    partial = list(compare(peer, ours_at(tmp_path, 100, 300, 80), 3))

    assert [each.ours.finished for each in partial] == [False, False, True]
    for speed in partial[-1].speeds:
        assert (speed.ours, speed.theirs, speed.ratios) == ([100, 300, 80], [50, 100, 40], [2, 3, 2])
    assert [speed.point for speed in partial[-1].speeds] == SIZES.points
    log = (tmp_path / "log").read_text().splitlines()
    assert [line.split()[0] for line in log] == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert log[0] == "ours --prompt 64 --generate 16 --depth 0,128"
    assert log[1] == f"theirs -m {gguf} -r 1 -o json -p 64 -n 16 -d 0,128 -t 2"


def test_what_differs_from_llama_cpp(tmp_path, gguf):
    (last,) = compare(llama(tmp_path, gguf, GOLDEN.read_text()), ours_at(tmp_path, 100.0), 1)
    assert (last.peer, last.version) == ("llama.cpp", "build 1, commit 0c1e570")
    differs = {each.what: each[1:] for each in last.differs}
    assert differs["weights"] == ("4.28 bits each, 11.20 GB", "5.48 bits each, 3.3 MB")
    assert differs["quantization"] == ("mxfp4-q4", "gpt-oss ?B MXFP4 MoE")
    assert not {"device", "threads", "prefill", "KV cache", "experts"} & differs.keys()

    other = golden(n_threads=4, n_ubatch=64, type_k="q8_0", type_v="q8_0", gpu_info="A GPU")
    (last,) = compare(llama(tmp_path, gguf, other), ours_at(tmp_path, 100.0), 1)
    differs = {each.what: each[1:] for each in last.differs}
    assert differs["device"] == ("CPU", "A GPU")
    assert differs["threads"] == ("2", "4")
    assert differs["prefill"] == ("512 tokens at a time", "64 tokens at a time")
    assert differs["KV cache"] == ("16 bits", "q8_0 and q8_0")


def test_a_busy_machine_is_told_by_the_load_before_the_first_run(tmp_path, gguf):
    first, second = (
        replace(
            results_of(dict.fromkeys(SIZES.points, 1.0)),
            conditions=replace(FULL.conditions, others=None, load_average=load),
        )
        for load in (3.0, 1.5)
    )
    *_, last = compare(llama(tmp_path, gguf, golden()), ours(tmp_path, first, second), 2)
    assert last.ours.conditions.load_average == 3
    assert "a load average of 3.00 on 2 cores" in as_markdown(last)


@pytest.mark.parametrize(("theirs", "won"), [((50, 99), 2), ((101, 200), 0), ((50, 200), 1), ((100, 50), 1)])
def test_pairs_that_are_won(theirs, won):
    assert PairedSpeed(Point("decode", 1, 0), [100.0] * len(theirs), list(theirs)).won == won


def test_one_kind_of_speed_alone(tmp_path, gguf):
    """What both sides are asked is a 0 where there is nothing to do: no text is no number."""
    tests = [test for test in json.loads(GOLDEN.read_text()) if test["n_prompt"]]
    peer = replace(llama(tmp_path, gguf, json.dumps(tests)), sizes=Grid((64,), (), (0, 128)))
    (last,) = compare(peer, ours_at(tmp_path, 1.0), 1)
    assert [speed.point.kind for speed in last.speeds] == ["prefill", "prefill"]
    log = (tmp_path / "log").read_text().splitlines()
    assert log[0] == "ours --prompt 64 --generate 0 --depth 0,128"
    assert "-p 64 -n 0 -d 0,128" in log[1]


@pytest.mark.parametrize("sizes", [Grid((), (4,), (0,)), Grid((16,), (), (0,))])
def test_mlx_lm_takes_a_prompt_and_decodes(demo_folder, sizes):
    with pytest.raises(GptOssError, match="neither --prompt nor --generate can be 0"):
        MlxLm(demo_folder, sizes)


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("", "Expecting value"),
        ("main: not JSON", "Expecting value"),
        ("[]", "no list of tests"),
        ("{}", "Expected `array`, got `object`"),
        ("[1]", r"Expected `object`, got `int` - at `\$\[0\]"),
        ("[{}]", "missing required field `n_prompt`"),
        (golden(avg_ts=0), r"> 0.0 - at `\$\[0\].avg_ts"),
        (golden(avg_ts="fast"), r"Expected `float`, got `str` - at `\$\[0\].avg_ts"),
        (golden(avg_ts=True), r"Expected `float`, got `bool` - at `\$\[0\].avg_ts"),
        (golden(model_size=1.5), r"Expected `int`, got `float` - at `\$\[0\].model_size"),
        (golden(n_depth=7), "llama.cpp reported no speed for prefill 64 at 0"),
        ("[" * 100_000, "nested"),
    ],
)
def test_garbage_of_a_peer_is_one_line(tmp_path, gguf, output, said):
    peer = llama(tmp_path, gguf, output)
    with pytest.raises(GptOssError, match=said) as caught:
        list(compare(peer, ours_at(tmp_path, 1.0), 1))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("output", "said"),
    [("oops", "Expecting value"), ("{}", "missing required field"), ('{"machine": 1}', "Expected `object`")],
)
def test_garbage_of_ours_is_one_line(tmp_path, gguf, output, said):
    command = [str(stand_in(tmp_path, "ours", output))]
    with pytest.raises(GptOssError, match=f"cannot read what our own run printed: .*{said}"):
        list(compare(llama(tmp_path, gguf, golden()), command, 1))


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (
            "echo warning >&2; printf 'error: failed to load\\033[31m\\n\\n' >&2; exit 1",
            r"failed to load\x1b[31m",
        ),
        ("exit 3", "exit status 3"),
        ("echo warning >&2; kill -SEGV $$", "Segmentation fault"),
        ("kill -KILL $$", "the system killed it, perhaps because memory was full"),
    ],
)
def test_a_failing_peer_is_one_line(tmp_path, gguf, script, said):
    peer = LlamaCpp(program(tmp_path / "theirs", f"#!/bin/sh\n{script}\n"), gguf, SIZES, None)
    with pytest.raises(GptOssError) as caught:
        list(compare(peer, ours_at(tmp_path, 1.0), 1))
    assert str(caught.value) == f"llama.cpp failed: {said}"


def test_a_peer_that_never_stops_printing_is_stopped(tmp_path, gguf):
    peer = LlamaCpp(program(tmp_path / "theirs", "#!/bin/sh\nexec yes\n"), gguf, SIZES, None)
    with pytest.raises(GptOssError, match="printed more than"):
        list(compare(peer, ours_at(tmp_path, 1.0), 1))


def gone(process: int) -> bool:
    """Whether a process has ended; some systems leave its entry for a while."""
    for _ in range(200):
        state = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True).stdout
        if not state or state.startswith("Z"):
            return True
        time.sleep(0.02)
    return False


def test_a_hanging_peer_ends_with_all_that_it_started(tmp_path, gguf):
    with pytest.raises(GptOssError, match=r"llama.cpp was stopped: one run took more than 3 s .* --prompt"):
        list(compare(llama(tmp_path, gguf, None), ours_at(tmp_path, 1.0), 1, time_limit=3))
    assert gone(int((tmp_path / "log.child").read_text()))


def test_ctrl_c_ends_what_runs_and_leaves_the_pairs_that_are_done(tmp_path, gguf):
    child = tmp_path / "log.child"

    def press() -> None:
        while not (child.exists() and child.read_text()):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()
    comparisons = compare(llama(tmp_path, gguf, golden(), None), ours_at(tmp_path, 1.0), 3)
    first = next(comparisons)
    with pytest.raises(KeyboardInterrupt):
        next(comparisons)
    assert (len(first.speeds[0].ours), first.ours.finished) == (1, False)
    assert gone(int(child.read_text()))


def test_what_is_no_llama_bench_or_no_gguf(tmp_path, gguf):
    script = program(tmp_path / "llama-bench", "no program")
    with pytest.raises(GptOssError, match=r"there is no .*missing: give the path of llama-bench"):
        LlamaCpp(tmp_path / "missing", gguf, SIZES, None)
    for no_program in (tmp_path, gguf):
        with pytest.raises(GptOssError, match="no program that can be run"):
            LlamaCpp(no_program, gguf, SIZES, None)
    with pytest.raises(GptOssError, match=r"cannot read .*missing.gguf: No such file"):
        LlamaCpp(script, tmp_path / "missing.gguf", SIZES, None)
    with pytest.raises(GptOssError, match=r"no GGUF file: .*convert_hf_to_gguf.py"):
        LlamaCpp(script, script, SIZES, None)
    with pytest.raises(GptOssError, match=r"cannot run .*llama-bench: Exec format error"):
        list(compare(LlamaCpp(script, gguf, SIZES, None), ours_at(tmp_path, 1.0), 1))


@pytest.fixture
def hostile(tmp_path, gguf):
    """One of two pairs, with a peer whose texts would drive a terminal, rich and Markdown."""
    peer = llama(tmp_path, gguf, golden(model_type="[red]\x1b[31m|<b>*", build_commit="a|b\n[link=x]"))
    return next(compare(peer, ours_at(tmp_path, 1000.0), 2))


def test_table(hostile, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "150")
    print_report(report(hostile))
    text = " ".join(capsys.readouterr().out.split())
    assert "\x1b" not in text
    assert (
        r"gpt-oss-20b, tokens/s: gptoss-mlx and llama.cpp build 1, commit a|b\n[link=x], 1 of 2 pairs of runs" in text
    )
    assert r"[red]\x1b[31m|<b>*" in text
    assert "decode 16 at 128" in text
    assert "interrupted" in text


def test_ratios_and_who_was_faster_fit_a_terminal(tmp_path, gguf, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    peer = llama(tmp_path, gguf, golden(avg_ts=50.0), golden(avg_ts=100))
    *_, last = compare(peer, ours_at(tmp_path, 65.0, 90.0), 2)
    longest = replace(last.speeds[0], point=Point("prefill", 2048, 65_536))
    print_report(report(replace(last, speeds=[longest, *last.speeds])))
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert lines.count(["prefill 2,048 at 65,536", "77.5", "75.0", "1.10 (0.90-1.30)", "1 of 2"]) == 1


def test_csv_has_every_pair(tmp_path, gguf):
    (*_, last) = compare(llama(tmp_path, gguf, golden(avg_ts=50.0)), ours_at(tmp_path, 100.0), 2)
    rows = list(csv.DictReader(as_csv(last).splitlines()))
    assert len(rows) == 2 * len(SIZES.points)
    assert rows[0] == {
        "kind": "prefill",
        "tokens": "64",
        "depth": "0",
        "pair": "1",
        "ours_tokens_per_second": "100.0",
        "theirs_tokens_per_second": "50.0",
        "ratio": "2.0",
        "peer": "llama.cpp",
    }


def test_markdown(hostile):
    lines = as_markdown(hostile).splitlines()
    (title,) = (line for line in lines if line.startswith("### gpt-oss-20b"))
    assert r"a\|b\\n\[link=x\]" in title
    rows = [line for line in lines if line.startswith(("| prefill", "| decode")) and " at " in line]
    assert [row.count("|") for row in rows][: len(SIZES.points)] == [6] * len(SIZES.points)
    assert any(r"\[red\]\\x1b\[31m\|\<b\>\*" in line for line in lines)


def test_json(hostile):
    data = json.loads(json.dumps(hostile.as_dict()))
    assert (data["peer"], data["pairs_asked"], data["ours"]["finished"]) == ("llama.cpp", 2, False)
    assert data["ours"]["machine"]["processor"] == FULL.machine.processor
    assert {"what", "ours", "theirs"} == data["differs"][0].keys()
    first = data["speeds"][0]
    assert (first["name"], first["kind"], first["tokens"], first["depth"]) == ("prefill 64 at 0", "prefill", 64, 0)
    assert first["ratio"]["runs"] == 1
    assert first["ratios"] == [first["ours_tokens_per_second"][0] / first["theirs_tokens_per_second"][0]]


@pytest.mark.skipif(
    not {"GPTOSS_MLX_TEST_LLAMA_BENCH", "GPTOSS_MLX_TEST_GGUF"} <= os.environ.keys(),
    reason="no llama-bench and GGUF file in the environment",
)
def test_the_real_llama_bench(tmp_path):
    program, gguf = (Path(os.environ[f"GPTOSS_MLX_TEST_{name}"]) for name in ("LLAMA_BENCH", "GGUF"))
    (*_, last) = compare(LlamaCpp(program, gguf, SIZES, threads=1), ours_at(tmp_path, 1.0), 2)
    assert last.ours.finished
    assert all(theirs > 1 for speed in last.speeds for theirs in speed.theirs)
    assert ("threads", "2", "1") in last.differs
