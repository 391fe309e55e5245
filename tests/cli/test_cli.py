"""The command line as a person meets it: real processes, their output, their exit status."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from checkpoints import config_of, write_checkpoint
from gptoss_convert import DEFAULT_RECIPE, RECIPES
from gptoss_mlx.cli import checkpoints

COMMANDS = [
    "convert",
    "chat",
    "generate",
    "bench",
    "eval",
    "doctor",
    "demo",
    "config",
    "completion",
    "sessions",
    "sessions list",
    "sessions show",
    "sessions export",
    "sessions rename",
    "sessions delete",
    "harmony render",
    "harmony parse",
]


def assert_one_line_error(done, *parts, status=1):
    assert done.returncode == status
    assert "Traceback" not in done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert line.lower().startswith("error:")
    for part in parts:
        assert part in line, line
    if status == 1:
        assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_an_example(run, name):
    done = run(*name.split(), "--help")
    assert done.returncode == 0
    line = f"Examples?: {'git diff [|] ' if name == 'generate' else ''}gptoss-mlx {name}"
    assert re.search(line, " ".join(done.stdout.split()))


def test_recipes_in_the_help_are_those_that_there_are(run):
    text = " ".join(run("convert", "--help").stdout.split())
    assert all(f"{recipe.name} {recipe.summary}" in text for recipe in RECIPES.values())
    assert checkpoints.DEFAULT_RECIPE == DEFAULT_RECIPE


def test_help_starts_quickly_and_imports_little(command, environment):
    args = [*command, "--help"]
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run(args, env=environment, check=True, capture_output=True)
        seconds.append(time.perf_counter() - started)
    code = (
        "import sys, contextlib, io\nfrom gptoss_mlx.cli import cli\n"
        "with contextlib.redirect_stdout(io.StringIO()): cli(['--help'], standalone_mode=False)\n"
        "print(*sys.modules)"
    )
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {
        "mlx",
        "mlx.core",
        "mlx_lm",
        "numpy",
        "tokenizers",
        "transformers",
        "rich",
        "prompt_toolkit",
        "huggingface_hub",
    }
    assert not heavy & set(modules)
    assert min(seconds) < 0.3


def test_version(run):
    assert re.fullmatch(r"gptoss-mlx \d+\.\d+\.\d+\n", run("--version").stdout)


def test_unknown_command_is_a_usage_error(run):
    assert_one_line_error(run("fly"), "fly", status=2)


def test_convert(run, tmp_path):
    source = write_checkpoint(tmp_path / "source", config_of())
    done = run("convert", source, tmp_path / "dest", "--recipe", "mxfp4-q8")
    assert done.returncode == 0
    assert "mxfp4-q8" in done.stdout
    assert json.loads((tmp_path / "dest" / "provenance.json").read_text())["recipe"] == "mxfp4-q8"
    assert_one_line_error(run("convert", source, tmp_path / "dest"), "exists already")
    assert_one_line_error(run("convert", tmp_path / "dest", tmp_path / "again"), "converted already")
    assert_one_line_error(run("generate", source, "-p", "x"), f"gptoss-mlx convert {source} DEST")


def test_convert_refuses_what_it_cannot_read(run, tmp_path):
    source = write_checkpoint(tmp_path / "source", config_of())
    shard = max(source.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-100])
    assert_one_line_error(run("convert", source, tmp_path / "dest"), "truncated", shard.name)
    assert_one_line_error(run("convert", tmp_path, tmp_path / "dest"), "config.json")
    assert_one_line_error(run("convert", shard, tmp_path / "dest"), "is a file")
    assert_one_line_error(run("convert", "not a name", tmp_path / "dest"), "neither a folder nor")
    assert_one_line_error(run("convert", source, tmp_path / "dest", "--recipe", "q3"), "q3", status=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_generate_prints_the_answer_alone(run, demo_folder):
    done = run("generate", demo_folder, "-p", "What is 12 + 30?", "--temperature", "0")
    assert done.returncode == 0
    assert done.stdout == "12 + 30 = 42\n"
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("schema", "error"),
    [
        ({"oneOf": [{"type": "boolean"}, {"enum": [True, False]}]}, "$ breaks the rule oneOf"),
        ({"name": "a", "schema": {"items": {"if": {}}}}, "if is not supported (at #/items/if)"),
    ],
)
def test_generate_says_what_is_wrong_with_a_schema_or_with_the_answer(run, demo_folder, tmp_path, schema, error):
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(schema))
    done = run("generate", demo_folder, "-p", "Hello", "--json-schema", path, "--reasoning", "none")
    assert_one_line_error(done, error)


def test_generate_reads_standard_input(run, demo_folder):
    assert run("generate", demo_folder, "--temperature", "0", stdin="What is 12 + 30?\n").stdout == "12 + 30 = 42\n"


def test_generate_same_seed_same_answer(run, demo_folder):
    def answers(seed):
        return [
            run("generate", demo_folder, "-p", "Hello", "--seed", seed, "--temperature", 3).stdout for _ in range(2)
        ]

    assert len(set(answers(1))) == 1


def test_generate_errors(run, demo_folder, tmp_path):
    assert_one_line_error(run("generate", demo_folder), "nothing to answer", status=2)
    assert_one_line_error(run("generate", demo_folder, "-p", "x", "--temperature", "-1"), "temperature")
    assert_one_line_error(run("generate", demo_folder, "-p", "x", "--max-tokens", "0"), "max-tokens", status=2)
    assert_one_line_error(run("generate", demo_folder, "-p", "x", "--max-tokens", "2"), "stopped before answering")
    assert_one_line_error(run("generate", tmp_path, "-p", "x"), "config.json")
    assert_one_line_error(run("generate", "no/such/model", "-p", "x"), "no model 'no/such/model'")
    assert_one_line_error(run("generate", "gpt-oss-20b", "-p", "x"), "gptoss-mlx convert openai/gpt-oss-20b")


def test_short_names_are_found_in_the_cache(run, demo_folder, environment, tmp_path):
    shutil.copytree(demo_folder, tmp_path / "openai--gpt-oss-20b")
    done = run("generate", "gpt-oss-20b", "-p", "What is 12 + 30?", "--temperature", "0", GPTOSS_MLX_HOME=str(tmp_path))
    assert done.stdout == "12 + 30 = 42\n"


def test_ctrl_c_is_no_traceback(command, environment, endless_folder):
    args = [*command, "generate", str(endless_folder), "-p", "Hello", "--temperature", "0"]
    process = subprocess.Popen(args, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(4)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.split() == ["interrupted"]


def test_a_closed_pipe_is_quiet(command, environment, demo_folder):
    reader, writer = os.pipe()
    os.close(reader)
    args = [*command, "generate", str(demo_folder), "-p", "What is 12 + 30?", "--temperature", "0"]
    done = subprocess.run(
        args, env=environment, stdout=writer, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    )
    os.close(writer)
    assert done.stderr == ""
    assert done.returncode == 1


def test_doctor(run):
    done = run("doctor", "--self-test")
    assert done.returncode == 0, done.stdout
    names = [line[:20].strip() for line in done.stdout.splitlines()]
    assert {"kernels", "memory", "mapped weights", "logits, mxfp4-q4", "logits, q4", "cache and window"} <= set(names)
    assert "FAIL" not in done.stdout


def test_doctor_without_kernels(run):
    done = run("doctor", GPTOSS_MLX_KERNELS="0")
    assert "off: switched off" in done.stdout


def test_demo(run):
    done = run("demo")
    assert done.returncode == 0
    assert "mxfp4-q4" in done.stdout
    assert "347 + 285 = 632" in done.stdout
    assert "calls get_weather" in done.stderr
    assert done.stderr.count("tokens/s") == 3
    assert "\x1b" not in done.stdout + done.stderr
    assert run("demo").returncode == 0


def test_harmony_render(run, tmp_path):
    path = tmp_path / "conversation.json"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "Hi"}]}))
    one = run("harmony", "render", path).stdout
    assert one.endswith("<|start|>user<|message|>Hi<|end|><|start|>assistant")
    lines = run("harmony", "render", path, path).stdout.splitlines()
    assert [json.loads(line) for line in lines] == [{"file": str(path), "output": one}] * 2


def test_harmony_parse(run, tmp_path):
    path = tmp_path / "output.txt"
    path.write_text("<|channel|>final<|message|>Hi<|return|>")
    one = json.loads(run("harmony", "parse", path).stdout)
    assert (one["content"], one["stop"]) == ("Hi", "return")
    lines = run("harmony", "parse", path, path).stdout.splitlines()
    assert [json.loads(line) for line in lines] == [{"file": str(path), "output": one}] * 2


def test_harmony_errors(run, tmp_path):
    (tmp_path / "bad.json").write_text('{"messages": [{"role": "robot", "content": ""}]}')
    assert_one_line_error(run("harmony", "render", tmp_path / "bad.json"), "bad.json", "robot")
    assert_one_line_error(run("harmony", "parse", tmp_path / "nothing"), "No such file")
    assert_one_line_error(run("harmony", "render"), "FILE", status=2)


def test_progress_without_a_terminal_is_a_line_every_tenth(capsys, monkeypatch):
    from gptoss_convert import Progress
    from gptoss_mlx.terminal import progress_bars

    clock = iter(range(0, 200, 1))
    monkeypatch.setattr(progress_bars.time, "monotonic", lambda: next(clock))
    with progress_bars.conversion_progress() as show:
        for done in range(0, 1001, 50):
            show(Progress("convert", done * 10**6, 10**9))
        show(Progress("checksums", 1, 1))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "convert 10 % of 1.00 GB, 50.0 MB/s, 18 s left"
    assert lines[-1] == "convert 100 % of 1.00 GB, 50.0 MB/s"
    assert len(lines) == 10
