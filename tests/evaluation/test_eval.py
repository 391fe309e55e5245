"""`gptoss-mlx eval` as a person meets it: results, tables, errors; killed or stopped by Ctrl-C, and gone on with."""

import gzip
import json
import signal
import subprocess
import time
from functools import cache
from pathlib import Path

import pytest

import zygote
from checkpoints import write_tokenizer
from cli.test_cli import assert_one_line_error
from gptoss_mlx import GptOssError
from gptoss_mlx.cli import cli
from gptoss_mlx.cli.evaluate import MAX_TEXT
from gptoss_mlx.demo import CHECKPOINT
from gptoss_mlx.demo import HELD_OUT as HELD_OUT_FILE
from gptoss_mlx.engine.builtin_text import TEXT
from gptoss_mlx.engine.tokenizer import Tokenizer
from gptoss_mlx.evaluation import held_out
from gptoss_mlx.evaluation.journal import CHECKSUM, EvaluationJournal, line_of
from gptoss_mlx.evaluation.needle import MIN_CONTEXT, ROOM, make_needle
from gptoss_mlx.evaluation.prompts import Asking
from memory.shapes import converted_shape

LINES = [
    {"prompt": "What is 12 + 30?", "answer": "12 + 30 = 42", "part": "sums"},
    {"prompt": "What is 12 + 31?", "answer": "12 + 31 = 44", "part": "sums"},
]


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return path


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT.read_text())
    return path


def test_without_options_it_is_the_built_in_text(run, demo_folder):
    done = run("eval", demo_folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("model, mxfp4-q4: CPU")
    assert "perplexity" in done.stdout
    assert "of the built-in text: the second half of 5 windows of 512 tokens" in done.stdout


def test_everything_at_once(run, demo_folder, prompts, environment):
    options = ("--tokens", 300, "--window", 100, "--reference", demo_folder, "--prompts", prompts, "--show-wrong")
    done = run("eval", demo_folder, *options, "--needle", "1024,1024", "--format", "json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["finished"]
    assert found["recipe"] == "mxfp4-q4"
    assert found["settings"]["prefill_chunk"] > 0
    assert (found["text"]["tokens"], found["text"]["window"]) == (3 * 49, 100)
    assert found["text"]["divergence"]["kl_mean"] == 0
    assert (found["prompts"]["all"]["right"], found["prompts"]["all"]["total"]) == (1, 2)
    assert found["prompts"]["parts"][0]["name"] == "sums"
    (wrong,) = found["prompts"]["wrong"]
    assert wrong["name"] == "line 2"
    assert [(each["context"], each["position"]) for each in found["needle"]] == [(1024, at) for at in (0.1, 0.5, 0.9)]
    assert all(each["found"] for each in found["needle"])
    assert all(each["prompt_tokens"] <= 1024 - ROOM for each in found["needle"])
    assert not list(Path(environment["GPTOSS_MLX_HOME"], "evaluations").iterdir())
    table = run("eval", demo_folder, "--prompts", prompts, "--show-wrong", "--needle", "1024")
    assert "1 of 2" in table.stdout
    assert "expected '12 + 31 = 44'" in " ".join(table.stdout.split())
    assert "3 of 3 found" in table.stdout


def test_errors(run_here, environment, demo_folder, endless_folder, prompts, tmp_path):
    assert_one_line_error(run_here("eval"), "MODEL", status=2)
    assert_one_line_error(run_here("eval", demo_folder, "--needle", "12,x"), "'12,x'", status=2)
    assert_one_line_error(run_here("eval", demo_folder, "--needle", "100"), "at least 1024", status=2)
    assert_one_line_error(run_here("eval", demo_folder, "--text", tmp_path / "no"), "cannot read", "No such file")
    assert_one_line_error(run_here("eval", demo_folder, "--reference", endless_folder), "another vocabulary")
    (tmp_path / "short.txt").write_text("a")
    assert_one_line_error(run_here("eval", demo_folder, "--text", tmp_path / "short.txt"), "at least 4")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    assert_one_line_error(run_here("eval", demo_folder, "--text", tmp_path / "bytes"), "not text in UTF-8")
    assert_one_line_error(run_here("eval", demo_folder, "--prompts", tmp_path / "bytes"), "bytes, line 1: ")
    with prompts.open("a") as file:
        file.write('{"prompt": 1}\n')
    assert_one_line_error(run_here("eval", demo_folder, "--prompts", prompts), "prompts.jsonl, line 3: ")
    assert_one_line_error(run_here("eval", demo_folder, "--context", 100), "a context of 512 tokens", "has 100")
    assert_one_line_error(run_here("eval", demo_folder, "--context", 0), "a context of 0 is too small")
    for many in (200_000, 10**15):
        assert_one_line_error(run_here("eval", demo_folder, "--needle", many), "more than the model's 131,072")
    prompts.write_text(json.dumps({"prompt": "word " * 200_000, "answer": ""}))
    assert_one_line_error(
        run_here("eval", demo_folder, "--prompts", prompts), "prompts: a context of", "the model's 131,072"
    )
    (tmp_path / "large").write_bytes(b"a" * (MAX_TEXT + 1))
    assert_one_line_error(run_here("eval", demo_folder, "--text", tmp_path / "large"), f"more than {MAX_TEXT:,} bytes")
    nowhere = run_here("eval", demo_folder, GPTOSS_MLX_HOME=str(tmp_path / "large" / "home"))
    assert_one_line_error(nowhere, "cannot write", "GPTOSS_MLX_HOME")
    for pair in ((demo_folder, CHECKPOINT), (CHECKPOINT, demo_folder)):
        assert_one_line_error(run_here("eval", pair[0], "--reference", pair[1]), "is a published checkpoint")
    assert_one_line_error(run_here("eval", tmp_path), "tokenizer.json")
    assert not list(Path(environment["GPTOSS_MLX_HOME"]).glob("evaluations/*"))


# The program, which waits for a signal when it has finished three items.
WAITING = """
import time
from gptoss_mlx.cli import main
from gptoss_mlx.engine.interrupts import Interrupts
from gptoss_mlx.evaluation.journal import EvaluationJournal

pressed = []

def add(self, name, value):
    keep(self, name, value)
    while len(self.values) == 3 and not pressed:
        time.sleep(0.01)

def press(self, *signal):
    pressed.append(signal)
    return hear(self, *signal)

keep, EvaluationJournal.add = EvaluationJournal.add, add
hear, Interrupts._press = Interrupts._press, press
main()
"""


def has_three_items(home):
    return any(path.read_bytes().count(b"\n") == 3 for path in home.glob("evaluations/*.journal"))


@pytest.fixture
def started(environment):
    """Start a process that evaluates, and wait until it has finished three items, or is `ready`."""
    processes = []

    def started(home, *args, ready=None) -> zygote.Piped:
        words = ["-c", WAITING, "eval", *map(str, args), "--format", "json"]
        process = zygote.shared().open(words, environment | {"GPTOSS_MLX_HOME": str(home)})
        processes.append(process)
        while not (ready or has_three_items)(home):
            assert process.returncode is None, process.communicate()
            time.sleep(0.01)
        return process

    yield started
    for process in processes:
        process.kill()


@pytest.fixture(scope="module")
def whole(environment, demo_folder, text_file, tmp_path_factory):
    """What an evaluation that is not interrupted prints, with and without a reference."""
    home = str(tmp_path_factory.mktemp("whole"))

    @cache
    def whole(reference: bool) -> str:
        words = ["-m", "gptoss_mlx", "eval", *options_of(demo_folder, text_file, reference), "--format", "json"]
        return zygote.shared().run(words, "", environment | {"GPTOSS_MLX_HOME": home}, timeout=100).stdout

    return whole


def options_of(folder, text_file, reference):
    """Five windows."""
    compared = ["--reference", str(folder)] if reference else []
    return [str(folder), "--text", str(text_file), "--tokens", "320", "--window", "64", *compared]


@pytest.mark.parametrize("reference", [False, True])
def test_a_killed_evaluation_continues(run, started, whole, demo_folder, text_file, tmp_path, reference):
    options = options_of(demo_folder, text_file, reference)
    assert json.loads(whole(reference))["finished"]
    home = tmp_path / "home"
    process = started(home, *options)
    process.kill()
    process.wait()
    (journal,) = home.glob("evaluations/*.journal")
    kept = journal.read_bytes()
    journal.write_bytes(kept + line_of(b'{"text 3": {"nll": [1.0]}}')[:-2])
    again = run("eval", *options, "--format", "json", GPTOSS_MLX_HOME=str(home))
    assert again.stdout == whole(reference)
    assert not list(home.glob("evaluations/*"))


def test_predictions_that_are_gone_are_written_again(run, started, whole, demo_folder, text_file, tmp_path):
    """All of them, also if that is interrupted: what an older journal says of them is not believed again."""
    home, options = tmp_path / "home", options_of(demo_folder, text_file, True)
    process = started(home, *options)
    process.kill()
    process.wait()
    (predictions,) = home.glob("evaluations/*.predictions")
    predictions.unlink()
    process = started(home, *options, ready=lambda home: predictions.exists())
    process.kill()
    process.wait()
    assert run("eval", *options, "--format", "json", GPTOSS_MLX_HOME=str(home)).stdout == whole(True)


def test_what_is_kept_is_not_measured_again(run, started, whole, demo_folder, text_file, tmp_path):
    home, options = tmp_path / "home", options_of(demo_folder, text_file, False)
    process = started(home, *options)
    process.kill()
    process.wait()
    (journal,) = home.glob("evaluations/*.journal")
    values = {}
    for line in journal.read_bytes().splitlines():
        values |= json.loads(line[CHECKSUM:])
    values["text 0"]["nll"] = [200.0 for _ in values["text 0"]["nll"]]
    journal.write_bytes(b"".join(line_of(json.dumps({name: value}).encode()) for name, value in values.items()))
    kept = json.loads(run("eval", *options, "--format", "json", GPTOSS_MLX_HOME=str(home)).stdout)["text"]
    assert kept["perplexity"] > 2 * json.loads(whole(False))["text"]["perplexity"]


def test_ctrl_c_shows_what_is_done(run, started, whole, demo_folder, text_file, tmp_path):
    home, options = tmp_path / "home", options_of(demo_folder, text_file, False)
    process = started(home, *options)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate()
    assert process.returncode == 130
    (journal,) = home.glob("evaluations/*.journal")
    assert [line for line in errors.splitlines() if line][-2:] == [
        f"progress is saved: the same command resumes; to discard it, remove {journal}",
        "interrupted",
    ]
    found = json.loads(output)
    assert not found["finished"]
    assert 3 <= found["text"]["windows"] < found["text"]["of_windows"]
    again = run("eval", *options, "--format", "json", GPTOSS_MLX_HOME=str(home)).stdout
    assert again == whole(False)
    finished = json.loads(again)
    assert finished["finished"]
    assert finished["text"]["windows"] == finished["text"]["of_windows"]


def test_a_journal_is_read_up_to_where_it_is_torn(tmp_path, monkeypatch):
    monkeypatch.setenv("GPTOSS_MLX_HOME", str(tmp_path))

    def opened(key):
        journal = EvaluationJournal(key)
        journal.open()
        return journal

    journal = opened({"a": 1})
    journal.add("one", [0.1])
    with pytest.raises(GptOssError, match="running already"):
        opened({"a": 1})
    path, whole = journal.path, journal.path.read_bytes()
    del journal
    edited = line_of(b'{"three": 3}').replace(b"3}", b"4}")
    for torn in (line_of(b'{"three": 3}')[:-1], b"\0\0\0\n", b"\n", b'{"three": 3}\n', edited, b"\xff\n"):
        path.write_bytes(whole + torn + line_of(b'{"four": 4}'))
        again = opened({"a": 1})
        assert again.values == {"one": [0.1]}
        again.add("two", 2)
        assert path.read_bytes() == whole + line_of(b'{"two": 2}')
        del again
    assert opened({"a": 2}).values == {}
    opened({"a": 1}).remove()
    assert not path.exists()


@pytest.fixture(params=[5, pytest.param(20, marks=pytest.mark.slow)])
def few_held_out(request, tmp_path, monkeypatch):
    """One prompt of some or all parts only, the second: of some parts the first one is too hard for the model."""
    with gzip.open(HELD_OUT_FILE, "rt") as file:
        lines = [json.loads(line) for line in file]
    parts = {}
    for line in lines:
        parts.setdefault(line["part"], []).append(line)
    chosen = [*parts.values()][:: 20 // request.param]
    text = "".join(json.dumps(line) + "\n" for lines in chosen for line in lines[1:2])
    (tmp_path / "held_out.gz").write_bytes(gzip.compress(text.encode()))
    monkeypatch.setattr(held_out, "HELD_OUT", tmp_path / "held_out.gz")
    monkeypatch.setenv("GPTOSS_MLX_HOME", str(tmp_path))
    return request.param


def test_held_out_prompts(few_held_out, demo_folder, capsys):
    cli(["eval", str(demo_folder), "--demo"], standalone_mode=False)
    table = capsys.readouterr().out
    assert f"{few_held_out} of {few_held_out}" in table
    assert "95 %" in table
    assert "missed" not in table


def test_a_threshold_that_is_missed_is_an_error(few_held_out, endless_folder, monkeypatch, capsys):
    monkeypatch.setattr(held_out, "MAX_TOKENS", 2)
    with pytest.raises(GptOssError, match="below the required share: arithmetic, "):
        cli(["eval", str(endless_folder), "--demo"], standalone_mode=False)
    assert f"0 of {few_held_out}" in capsys.readouterr().out


def test_needles(demo_folder):
    tokenizer = Tokenizer.load(demo_folder)
    for context in (MIN_CONTEXT, 5000):
        for position in (0.1, 0.5, 0.9):
            needle = make_needle(context, position, tokenizer, Asking())
            text = tokenizer.decode(needle.ids)
            assert context - ROOM - 60 < len(needle.ids) <= context - ROOM
            assert text.count(needle.code) == 1
            said = text.partition("<|start|>user")[2]
            assert said.index(needle.code) / len(said) == pytest.approx(position, abs=0.1)
            assert make_needle(context, position, tokenizer, Asking()) == needle


@pytest.mark.slow  # the head's products with 201,088 tokens
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system does not tell what a process has")
def test_a_large_vocabulary_fits_into_the_plan(run, command, environment, tmp_path):
    """Weights are zeros, so that each of 201,088 tokens is as likely as any other."""
    folder = converted_shape(tmp_path / "model", layers=2, experts=4)
    write_tokenizer(folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": 257}')
    planned = json.loads(run("plan", folder, "--context", 512, "--kv-bits", 16, "--json").stdout)["anonymous"]
    args = [*command, "eval", str(folder), "--tokens", "512", "--kv-bits", "16", "--format", "json"]
    process = subprocess.Popen(args, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    most = 0
    while process.poll() is None:
        fields = Path(f"/proc/{process.pid}/status").read_text().split()
        most = max(most, 1024 * int(fields[fields.index("RssAnon:") + 1])) if "RssAnon:" in fields else most
        time.sleep(0.005)
    assert json.loads(process.stdout.read())["text"]["perplexity"] == pytest.approx(201_088, rel=1e-6)
    print(most / planned, planned)
    assert 0 < most <= planned
