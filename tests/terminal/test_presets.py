"""Presets: settings under a name, in files beside the config file, for a chat and for one answer."""

import sys

import pytest

from gptoss_mlx.chat.presets import Template
from gptoss_mlx.errors import GptOssError
from terminal.terminals import Terminal

SUM = 'template = "What is $a + ${input}?"\ntemperature = 0\n'


@pytest.fixture
def write(tmp_path):
    """Write a preset; returns the change of the environment that makes it one."""
    (tmp_path / "presets").mkdir()

    def write(name, text):
        (tmp_path / "presets" / f"{name}.toml").write_text(text)
        return {"GPTOSS_MLX_CONFIG": str(tmp_path / "config.toml"), "GPTOSS_MLX_HOME": str(tmp_path / "home")}

    return write


def test_generate_takes_a_preset_and_what_is_given_wins(run, demo_folder, write):
    changes = write("sum", SUM + "max-tokens = 2\n")
    args = ["generate", demo_folder, "--preset", "sum", "--param", "a", "12", "-p", "30"]
    assert "stopped before answering" in run(*args, **changes).stderr
    done = run(*args, "--max-tokens", 400, **changes)
    assert (done.stdout, done.stderr) == ("12 + 30 = 42\n", "")


def test_a_preset_counts_more_than_the_config_file_which_may_name_it(run, demo_folder, write, tmp_path):
    changes = write("exact", "temperature = 0\nmax-tokens = 400\n")
    (tmp_path / "config.toml").write_text('[generate]\npreset = "exact"\nmax-tokens = 2\n')
    assert run("generate", demo_folder, "-p", "What is 12 + 30?", **changes).stdout == "12 + 30 = 42\n"


def test_a_chat_switches_presets(run, demo_folder, write):
    changes = write("sum", SUM)
    write("brief", 'system = "Be brief."\nreasoning = "low"\ntemperature = 0\nseed = 7\nmax-tokens = 300\n')
    lines = [
        *("/preset", "/preset sum a=12", "30", "/preset brief", "/preset", "/system", "/reasoning", "/set"),
        *("What is 40 - 7?", "/preset none", "/system", "/reasoning", "/preset sum", "/preset nothing"),
    ]
    done = run("chat", demo_folder, "--reasoning", "high", **changes, stdin="\n".join(lines) + "\n")
    assert done.stdout == "12 + 30 = 42\n40 - 7 = 33\n"
    notes = [line for line in done.stderr.splitlines() if not line.startswith("(")]
    folder = changes["GPTOSS_MLX_CONFIG"].replace("config.toml", "presets")
    assert notes == [
        *("brief", "sum"),
        "new conversation with the preset sum",
        "new conversation with the preset brief",
        *("brief (holds)", "sum"),
        "Be brief.",
        "reasoning effort: low",
        *("temperature  0.0", "top-p        1.0", "top-k        0", "min-p        0.0", "seed         7"),
        "max-tokens   300",
        "new conversation without a preset",
        "no instructions",
        "reasoning effort: high",
        f"error: {folder}/sum.toml: template: no value for $a: --param a VALUE, in a chat a=VALUE",
        f"error: there is no preset nothing: in {folder} there are brief, sum",
    ]


def test_a_preset_brings_its_tools(run, demo_folder, write):
    done = run("chat", demo_folder, **write("py", "python = true\n"), stdin="/tools\n/preset py\n/tools\n")
    assert done.stderr.splitlines() == [
        "no tools",
        "new conversation with the preset py",
        "python: built in (asks first)",
    ]


def test_a_resumed_chat_takes_what_the_preset_says(run, demo_folder, write):
    changes = write("brief", 'system = "Be brief."\n')
    options = ["--temperature", 0, "--reasoning", "low"]
    run("chat", demo_folder, *options, **changes, stdin="What is 12 + 30?\n")
    said = run("chat", "--resume", **changes, stdin="/system\n/reasoning\n").stderr.splitlines()
    assert said[-2:] == ["no instructions", "reasoning effort: low"]
    said = run("chat", "--resume", "--preset", "brief", **changes, stdin="/system\n/reasoning\n").stderr.splitlines()
    assert said[-2:] == ["Be brief.", "reasoning effort: low"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("temprature = 1", "temprature: a preset has no such option"),
        ('memory = "12GB"', "memory: a preset has no such option"),
        ("temperature = 'hot'", "temperature: 'hot' is not a valid float"),
        ("temperature = -1", "temperature is -1.0, not 0 or more"),
        ("temperature = true", "temperature: write text or a number"),
        ("reasoning = 'extreme'", "reasoning: 'extreme' is not one of 'none', 'low', 'medium', 'high'"),
        ("tools = '/no/tools.toml'", "tools: File '/no/tools.toml' does not exist"),
        ("python = 1", "python: write true or false"),
        ("template = 3", "template: write text"),
        ('template = "Hello"', "template: write $input where the message goes"),
        ('template = "$input for 5 $"', "template: a $ that begins no variable is written $$"),
        ('template = "$b $input $a"', "template: no value for $b, $a: --param b VALUE, in a chat b=VALUE"),
    ],
)
def test_what_is_wrong_is_one_line_with_file_and_key(run, write, text, complaint):
    changes = write("wrong", text)
    done = run("generate", "nothing", "-p", "Hello", "--preset", "wrong", **changes)
    path = changes["GPTOSS_MLX_CONFIG"].replace("config.toml", "presets/wrong.toml")
    assert (done.returncode, done.stderr) == (1, f"error: {path}: {complaint}\n")


@pytest.mark.parametrize("name", ["../config", "other", ""])
def test_a_preset_that_is_not_there(run, write, tmp_path, name):
    changes = write("one", "")
    (tmp_path / "config.toml").write_text("")
    done = run("generate", "nothing", "-p", "Hello", "--preset", name, **changes)
    assert done.stderr == f"error: there is no preset {name}: in {tmp_path}/presets there are one\n"
    assert run("generate", "nothing", "-p", "x", "--preset", "one", "--param", "a", "b", **changes).stderr == (
        f"error: {tmp_path}/presets/one.toml: there is no template, and so no variable $a to set\n"
    )


def test_a_preset_that_cannot_be_read(run, write, tmp_path):
    changes = write("broken", "[")
    (tmp_path / "presets" / "folder.toml").mkdir()
    for name in ("broken", "folder"):
        done = run("generate", "nothing", "-p", "Hello", "--preset", name, **changes)
        assert done.returncode == 1
        assert done.stderr.startswith(f"error: cannot read {tmp_path}/presets/{name}.toml: ")
        assert done.stderr.count("\n") == 1


def test_a_parameter_without_a_preset(run):
    done = run("generate", "nothing", "-p", "Hello", "--param", "a", "b")
    assert done.returncode == 2
    assert "--param sets a variable of a preset's template: name one with --preset" in done.stderr


def test_a_template_leaves_what_it_is_given_as_it_is():
    template = Template("$$5 for $name: ${input}", {"name": "$input"})
    assert template.filled("$name {x} $$") == "$5 for $input: $name {x} $$"
    with pytest.raises(GptOssError, match=r"there is no variable \$other to set"):
        Template("$input", {"other": "x"})
    with pytest.raises(GptOssError, match=r"there is no variable \$input to set"):
        Template("$input", {"input": "x"})


def test_tab_completes_names_of_presets_and_models(environment, demo_folder, write, tmp_path):
    changes = write("translate", 'template = "What is $a + $input?"\ntemperature = 0\n')
    write("sum", SUM)
    (tmp_path / "home" / "somebody--tuned").mkdir(parents=True)
    (tmp_path / "home" / "somebody--tuned" / "config.json").write_text("{}")
    command = [
        sys.executable,
        "-m",
        "gptoss_mlx",
        "chat",
        str(demo_folder),
        "--preset",
        "translate",
        "--param",
        "a",
        "1",
    ]
    terminal = Terminal(command, environment | changes)
    terminal.wait("^>$")
    terminal.wait("preset translate")  # in the status line
    terminal.keys("/preset su\t")
    terminal.wait("^> /preset sum$")
    terminal.keys(" a=12\r")
    terminal.wait("new conversation with the preset sum")
    terminal.line("30")
    terminal.wait(r"12 \+ 30 = 42\n\n>$")
    terminal.keys("/model some\t")
    terminal.wait("^> /model somebody/tuned$")
    terminal.key("c")
    terminal.line("/exit")
    assert terminal.exit_status() == 0


def test_shells_complete_names_of_presets(run, write):
    changes = write("sum", SUM)
    write("brief", "")
    words = {"COMP_WORDS": "gptoss-mlx chat --preset ", "COMP_CWORD": "3", "_GPTOSS_MLX_COMPLETE": "bash_complete"}
    assert run(**changes, **words).stdout.splitlines() == ["plain,brief", "plain,sum"]
