"""`generate` and `demo`: the answer, where it goes, and how a run ends early."""

import json
import os
import shutil
import signal

import pytest

import zygote
from cli.test_cli import assert_one_line_error
from gptoss_mlx.demo import CHECKPOINT


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


QUESTION = "What is 12 + 30?"


def test_generate_takes_a_question_alone(run, demo_folder, tmp_path):
    config = tmp_path / "config.toml"
    config.write_text(f'[generate]\nmodel = "{demo_folder}"\n')
    done = run("generate", QUESTION, "--temperature", "0", GPTOSS_MLX_CONFIG=str(config))
    assert (done.stdout, done.stderr) == ("12 + 30 = 42\n", "")
    last = tmp_path / "last-model"
    last.write_bytes(os.fsencode(demo_folder))
    done = run("generate", "--temperature", "0", QUESTION, stdin="\n", GPTOSS_MLX_HOME=str(tmp_path))
    assert (done.stdout, done.stderr) == ("12 + 30 = 42\n", "")


def test_generate_takes_no_model_for_a_question(run, demo_folder, tmp_path):
    (tmp_path / "my model").symlink_to(demo_folder)
    done = run("generate", tmp_path / "my model", "-p", QUESTION, "--temperature", "0")
    assert done.stdout == "12 + 30 = 42\n"
    assert_one_line_error(run("generate", tmp_path / "my model"), "nothing to answer", status=2)
    assert_one_line_error(run("generate", "question", stdin="more"), "there is no model 'question'")
    assert_one_line_error(run("generate", "a question", "-p", QUESTION), "there is no model 'a question'")


def test_generate_takes_a_question_after_the_model(run, demo_folder):
    for words in ((QUESTION,), QUESTION.split()):
        done = run("generate", demo_folder, *words, "--temperature", "0")
        assert (done.returncode, done.stdout) == (0, "12 + 30 = 42\n")
    done = run("generate", demo_folder, QUESTION, "-p", QUESTION)
    assert done.returncode == 2
    assert "give the prompt after MODEL or with -p, not both" in done.stderr
    assert_one_line_error(run("generate", "somebody/typed this", QUESTION), "there is no model 'somebody/typed this'")


def test_generate_that_reaches_max_tokens(run, demo_folder, tmp_path):
    ask = ["generate", demo_folder, "-p", QUESTION, "--temperature", "0", "--max-tokens"]
    done = run(*ask, 4, "--reasoning", "none")
    assert done.returncode == 0
    assert done.stderr == "stopped in the middle of the answer, at --max-tokens 4\n"
    assert "12 + 30 = 42\n".startswith(done.stdout.rstrip("\n"))
    assert 0 < len(done.stdout) < 13
    assert_one_line_error(run(*ask, 4), "the model stopped before answering")
    (tmp_path / "schema.json").write_text('{"type": "string", "minLength": 50}')
    done = run(*ask, 4, "--reasoning", "none", "--json-schema", tmp_path / "schema.json")
    assert_one_line_error(done, "the model stopped in the middle of its answer")


def test_generate_that_fills_the_context(run, endless_folder):
    ask = ["generate", endless_folder, "-p", "x", "--temperature", "0", "--reasoning", "none", "--context", "300"]
    done = run(*ask, "--max-tokens", "1000")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")


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
    args = [*command[1:], "generate", str(endless_folder), "-p", "Hello", "--temperature", "0", "--reasoning", "none"]
    process = zygote.shared().open(args, environment)
    process.stdin.close()  # it is part of the question
    assert process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert errors.split() == ["interrupted"]


def test_a_closed_pipe_is_quiet(command, environment, demo_folder, tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    args = [*command[1:], "generate", str(demo_folder), "-p", "What is 12 + 30?", "--temperature", "0"]
    with open(os.devnull) as stdin, open(tmp_path / "errors", "w+") as stderr:
        run = zygote.shared().start(args, environment, [stdin.fileno(), writer, stderr.fileno()])
        os.close(writer)
        assert os.waitstatus_to_exitcode(run.wait()) == 1
        assert (tmp_path / "errors").read_text() == ""


def test_paths_and_names_that_no_shell_has_expanded(run, demo_folder, tmp_path):
    """As in a config file, or after `=`: `~` is the home folder, wherever a model is named."""
    shutil.copytree(demo_folder, tmp_path / "models" / "small")
    shutil.copytree(CHECKPOINT, tmp_path / "source")
    ask = ["-p", "What is 12 + 30?", "--temperature", "0"]
    for args in (
        ["plan", "~/models/small"],
        ["inspect", "~/models/small"],
        ["verify", "~/models/small"],
        ["upload", "~/models/small", "somebody/model", "--dry-run"],
        ["compare", "~/source", "~/models/small", "--tokens", "2"],
        ["eval", "~/models/small", "--reference", "~/models/small", "--tokens", "8"],
        ["convert", "~/source", "~/models/again"],
        ["generate", "~/models/again", *ask],
    ):
        done = run(*args, HOME=str(tmp_path))
        assert done.returncode == 0, done.stderr
    assert done.stdout == "12 + 30 = 42\n"
    assert (tmp_path / "models" / "again" / "config.json").exists()


def test_demo(run):
    done = run("demo")
    assert done.returncode == 0
    assert "mxfp4-q4" in done.stdout
    assert "347 + 285 = 632" in done.stdout
    assert "calls get_weather" in done.stderr
    assert done.stderr.count("tokens/s") == 3
    assert "\x1b" not in done.stdout + done.stderr
    assert run("demo").returncode == 0
