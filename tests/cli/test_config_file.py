"""The config file: what it sets, what counts more, what is refused, and what `config` says of it."""

import dataclasses
import json
import os
from pathlib import Path

import click
import pytest

import zygote
from gptoss_mlx.cli import cli, config_file
from gptoss_mlx.engine.sampling import Sampling


@pytest.fixture
def config(tmp_path):
    """Write a config file; returns the change of the environment that names it."""

    def write(text):
        data = text if isinstance(text, bytes) else text.encode()
        (tmp_path / "config.toml").write_bytes(data)
        return {"GPTOSS_MLX_CONFIG": str(tmp_path / "config.toml")}

    return write


@pytest.fixture
def settings(run):
    """What `gptoss-mlx config --json` says: file, problems, and (value, source) by command and option."""

    def settings(*args, **changes):
        done = run("config", *args, "--json", **changes)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        found["commands"] = {
            command: {name: (entry["value"], entry["source"]) for name, entry in entries.items()}
            for command, entries in found["commands"].items()
        }
        return found

    return settings


def test_what_it_sets_is_used(run, demo_folder, config):
    changes = config(f'[all]\nmodel = "{demo_folder}"\ntemperature = 0\n[generate]\nprompt = "What is 12 + 30?"\n')
    assert run("generate", **changes).stdout == "12 + 30 = 42\n"
    assert run("generate", "-p", "What is 40 - 7?", **changes).stdout == "40 - 7 = 33\n"
    refused = run("generate", "--max-tokens", 2, **changes)
    assert "stopped before answering" in refused.stderr
    assert run("chat", **changes, stdin="What is 12 + 30?\n").stdout == "12 + 30 = 42\n"


def test_the_nearest_counts(settings, config):
    changes = config(
        '[all]\nthreads = 2\nmemory = "12GB"\n[chat]\nthreads = 3\nkv-bits = 8\nshow-reasoning = false\n'
        '[bench]\ndepth = [2048, 8192]\n[convert]\nadapter = "~/lora"\nverify = true\n'
    )
    found = settings(**changes, GPTOSS_MLX_THREADS="")["commands"]
    assert found["chat"]["threads"] == (3, "config file")
    assert found["bench"]["threads"] == (2, "config file")
    assert found["plan"]["memory"] == ("12GB", "config file")
    assert found["chat"]["kv-bits"] == ("8", "config file")
    assert found["chat"]["show-reasoning"] == (False, "config file")
    assert found["chat"]["reasoning"] == ("medium", "default")
    assert found["bench"]["depth"] == ([2048, 8192], "config file")
    assert found["convert"]["adapter"] == (os.path.expanduser("~/lora"), "config file")
    assert found["convert"]["verify"] == (True, "config file")
    found = settings(**changes, GPTOSS_MLX_THREADS="1")["commands"]
    assert found["chat"]["threads"] == (1, "environment")
    assert settings(GPTOSS_MLX_THREADS="many")["commands"]["chat"]["threads"] == ("many", "environment")


def test_threads_of_the_environment_are_checked_as_those_of_the_command_line(run, demo_folder):
    done = run("generate", demo_folder, "-p", "Hi", GPTOSS_MLX_THREADS="many")
    assert done.returncode == 2
    assert "(env var: 'GPTOSS_MLX_THREADS'): 'many' is not a valid integer" in done.stderr


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[chat]\ntemprature = 1", "[chat] temprature: chat has no such option"),
        ("[chatt]\ntemperature = 1", "chatt: there is no such command"),
        ("temperature = 1", "temperature: there is no such command"),
        ("[harmony.renderer]", "[harmony] renderer: there is no such command"),
        ("[all]\nfly = true", "[all] fly: no command has this option"),
        ("all = 3", "all is a table: write [all]"),
        ("chat = 3", "chat is a table: write [chat]"),
        ("[chat]\nmax_tokens = 3", "[chat] max_tokens: chat has no such option"),
        ("[convert]\ndest = 'x'", "[convert] dest: convert has no such option"),
        ("[chat]\ntemperature = 'hot'", "[chat] temperature: 'hot' is not a valid float"),
        ("[chat]\ntemperature = true", "[chat] temperature: write text or a number"),
        ("[chat]\nmax-tokens = 2.5", "[chat] max-tokens: '2.5' is not a valid integer"),
        ("[chat]\nmax-tokens = 0", "[chat] max-tokens: 0 is not in the range x>=1"),
        ("[chat]\nreasoning = 'extreme'", "[chat] reasoning: 'extreme' is not one of 'none', 'low', 'medium', 'high'"),
        ("[chat]\nsystem = 1979-05-27", "[chat] system: write text or a number"),
        ("[all]\nmemory = 'much'", "[all] memory: 'much' is not an amount of memory: write 16GB, 12GiB or 900MB"),
        ("[convert]\nverify = 1", "[convert] verify: write true or false"),
        ("[bench]\ndepth = 2048", "[bench] depth: write a list: [...]"),
        ("[bench]\ndepth = ['x']", "[bench] depth: 'x' is not a list of whole numbers"),
        ("[chat]\nsystem = '\\u202e\x1b'", "cannot read"),
        ('[chat]\n"\\u001b[2J" = 1', "[chat] \\x1b[2J: chat has no such option"),
        ("[chat", "cannot read"),
        (b"\xff\xfe", "cannot read"),
        ("x = " + "[" * 100_000, "cannot read"),
        ("x = " + "9" * 10_000, "cannot read"),
        ("#" * 2**21, "more than 1,048,576 bytes"),
    ],
)
def test_what_is_wrong_is_one_line_with_file_and_key(config, monkeypatch, text, complaint):
    (name, path), *_ = config(text).items()
    monkeypatch.setenv(name, path)
    found = config_file.read(cli)
    (line,) = found.problems
    assert path in line
    assert complaint in line
    assert line.isprintable()


def test_what_is_wrong_stops_commands_and_not_config(run, settings, config):
    changes = config("[chat]\ntemperature = 'hot'\n")
    done = run("harmony", "render", "nothing", **changes)
    assert done.returncode == 1
    assert done.stderr == f"error: {changes['GPTOSS_MLX_CONFIG']}: [chat] temperature: 'hot' is not a valid float\n"
    found = settings("chat", **changes)
    assert found["problems"] == [done.stderr.removeprefix("error: ").strip()]
    assert found["commands"]["chat"]["temperature"] == (1.0, "default")


def test_the_example_in_the_documents(settings, config):
    page = Path(__file__).parents[2].joinpath("docs", "settings.md").read_text()
    found = settings(**config(page.split("```toml")[1].split("```")[0]))
    assert found["problems"] == []
    assert found["commands"]["chat"]["model"] == ("gpt-oss-120b", "config file")


def test_what_is_right_beside_it_is_still_shown(settings, config):
    found = settings(**config("[chat]\ntop-k = 40\ntemperature = 'hot'\nfly = 1\n"))
    assert len(found["problems"]) == 2
    assert found["commands"]["chat"]["top-k"] == (40, "config file")


@pytest.mark.parametrize("kind", ["folder", "pipe", "unreadable link"])
def test_what_is_no_file(run, tmp_path, kind):
    path = tmp_path / "config.toml"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(path)
    done = run("config", "chat", GPTOSS_MLX_CONFIG=str(path))
    assert done.returncode == 0
    assert len(done.stderr.splitlines()) == (0 if kind == "pipe" else 1)  # a pipe holds nothing


def test_where_it_is(run, environment, tmp_path):
    bare = {name: value for name, value in environment.items() if name not in ("GPTOSS_MLX_CONFIG", "XDG_CONFIG_HOME")}

    def first_line(**changes):
        done = zygote.shared().run(["-m", "gptoss_mlx", "config", "chat"], "", bare | changes, timeout=100)
        return done.stdout.splitlines()[0]

    home = str(tmp_path)
    assert first_line(HOME=home) == f"{home}/.config/gptoss-mlx/config.toml (does not exist)"
    (tmp_path / "gptoss-mlx").mkdir()
    (tmp_path / "gptoss-mlx" / "config.toml").write_text("")
    assert first_line(XDG_CONFIG_HOME=home) == f"{home}/gptoss-mlx/config.toml"
    assert first_line(XDG_CONFIG_HOME=home, GPTOSS_MLX_CONFIG="/x/y.toml") == "/x/y.toml (does not exist)"


def test_a_path_that_no_file_can_have(run):
    done = run("config", "chat", GPTOSS_MLX_CONFIG="x" * 5000)
    assert done.returncode == 0
    assert done.stderr.startswith("error: cannot read ")
    assert done.stdout.splitlines()[0].endswith(" (does not exist)")


def test_the_table(run, config):
    done = run("config", "chat", **config('[chat]\nmemory = "12GB"\n'))
    rows = [tuple(part.strip() for part in line.split("  ") if part) for line in done.stdout.splitlines()]
    assert rows[2] == ("[chat]",)
    assert ("memory", '"12GB"', "config file") in rows
    assert ("context", "as much as fits", "default") in rows
    assert ("system", "none", "default") in rows
    assert sum(row[0].startswith("[") for row in rows if row and row[0]) == 1
    assert run("config", "fly").returncode == 2
    text = run("config", **config('[generate]\nsystem = "Sei h\\u00f6flich.\\u202e\\u001b[2J"\n')).stdout
    assert '"Sei höflich.\\u202e\\u001b[2J"' in text


def _commands(group, path=""):
    for command in group.commands.values():
        name = f"{path} {command.name}".strip()
        yield from _commands(command, name) if isinstance(command, click.Group) else [(name, command)]


def test_every_option_of_every_command_is_there_under_its_name(settings):
    found = {
        (name, option) for name, options in settings()["commands"].items() for option in options if option != "model"
    }
    declared = {
        (name, max(option.opts, key=len)[2:])
        for name, command in _commands(cli)
        for option in command.params
        if isinstance(option, click.Option)
    }
    assert found == declared
    assert config_file.ALL not in cli.commands


def test_the_defaults_shown_are_those_of_sampling(settings):
    shown = settings("chat")["commands"]["chat"]
    for field in dataclasses.fields(Sampling):
        assert shown[field.name.replace("_", "-")] == (field.default, "default")
