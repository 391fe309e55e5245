"""`gptoss-mlx models`, and the names of models where commands take one."""

import gc
import json
import os
import shutil
import time
from pathlib import Path

import pytest

from checkpoints import config_of, write_checkpoint
from cli.test_cli import assert_one_line_error
from convert.hub import serving
from gptoss_convert import convert
from gptoss_mlx import files, load
from gptoss_mlx.cli import cli
from gptoss_mlx.demo import CHECKPOINT
from gptoss_mlx.model.model_store import stamp_of
from gptoss_mlx.provenance import provenance_of
from terminal.terminals import Terminal, golden

QUESTION = ("-p", "What is 12 + 30?", "--temperature", "0")
ANSWER = "12 + 30 = 42\n"
NAME = "somebody/tuned"


@pytest.fixture
def user(tmp_path):
    """Variables of a user without a GPTOSS_MLX_HOME, whose home is a folder of its own."""
    return {"GPTOSS_MLX_HOME": "", "XDG_DATA_HOME": "", "XDG_CACHE_HOME": "", "HOME": str(tmp_path)}


@pytest.fixture
def place(tmp_path):
    folder = tmp_path / ".local" / "share" / "gptoss-mlx" / "models"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def old_place(tmp_path):
    folder = tmp_path / ".cache" / "gptoss-mlx"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def command_of(run, user):
    """Commands of this user."""

    def command(*args, **options):
        return run(*args, **user | options)

    return command


def listed(command_of):
    return json.loads(command_of("models", "list", "--json").stdout)


def interrupted_at(dest: Path):
    """A real conversion that ended in its middle."""

    def interrupt(step):
        if step.stage == "convert" and step.done > step.total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(CHECKPOINT, dest, "mxfp4-q8", on_progress=interrupt)


def test_nothing_yet(command_of, place):
    done = command_of("models")
    assert (done.returncode, done.stdout) == (0, "")
    assert f"no models yet in {place}" in done.stderr
    assert listed(command_of) == []
    assert command_of("models", "path").stdout == f"{place}\n"


def test_a_conversion_without_dest(command_of, place):
    """Two recipes of one model lie side by side, and each is found by its name."""
    plain, q4 = (command_of("convert", CHECKPOINT, *options).stdout for options in ((), ("--recipe", "mxfp4-q4")))
    assert plain.endswith("installed: `gptoss-mlx chat local/checkpoint`\n")
    assert q4.endswith("installed: `gptoss-mlx chat local/checkpoint:q4`\n")
    assert command_of("generate", "local/checkpoint:q4", *QUESTION).stdout == ANSWER
    found = listed(command_of)
    assert [(each["name"], each["recipe"], each["source"]) for each in found] == [
        ("local/checkpoint", "mxfp4-q8", "checkpoint"),  # which fits every machine
        ("local/checkpoint:q4", "mxfp4-q4", "checkpoint"),
    ]
    assert found[0]["bytes"] == sum(path.stat().st_size for path in Path(found[0]["folder"]).iterdir())
    assert found[0]["used"] is None
    assert found[1]["used"] == stamp_of(place / "local--checkpoint--q4").stat().st_mtime
    assert_one_line_error(command_of("convert", CHECKPOINT), "exists already")


def test_a_recipe_in_the_name_of_a_source(command_of, place, tmp_path):
    source = write_checkpoint(tmp_path / "source", config_of())
    with serving(source, "openai/gpt-oss-20b") as hub:
        online = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "hf")}
        done = command_of("convert", "gpt-oss:20b:q8", **online)
        assert_one_line_error(
            command_of("convert", "gpt-oss:20b:q8", "--recipe", "q4"), "mxfp4-q8", "--recipe says q4", status=2
        )
    assert done.stdout.endswith("installed: `gptoss-mlx chat gpt-oss-20b:q8`\n")
    assert command_of("models", "path", "gpt-oss").stdout == f"{place / 'openai--gpt-oss-20b--q8'}\n"
    assert [(each["name"], each["recipe"], each["source"]) for each in listed(command_of)] == [
        ("gpt-oss-20b:q8", "mxfp4-q8", "openai/gpt-oss-20b")
    ]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("gpt-oss-20b:q9",), "no tag of a recipe: the tags are q4, q8"),
        (("gpt-oss-20b", "--adapter", "x"), "give DEST"),
    ],
)
def test_conversions_that_need_more_words(command_of, args, words):
    assert_one_line_error(command_of("convert", *args), words, status=2)


@pytest.mark.parametrize(
    "name", ["gpt-oss:20b", "openai/gpt-oss-20b", "gpt-oss-20b:q4", "https://hf.co/openai/gpt-oss-20b"]
)
def test_names_are_understood(command_of, place, demo_folder, name):
    (place / "openai--gpt-oss-20b").symlink_to(demo_folder)
    assert command_of("generate", name, *QUESTION).stdout == ANSWER


def test_every_command_understands_them(command_of, place, demo_folder):
    (place / "openai--gpt-oss-20b").symlink_to(demo_folder)
    name = "gpt-oss:20b"
    assert command_of("chat", name, "--temperature", "0", stdin="What is 12 + 30?").stdout == ANSWER
    for command in (
        ("plan", name),
        ("verify", name),
        ("inspect", name),
        ("bench", name, "--prompt", "4", "--generate", "2", "--repeat", "1", "--no-start", "--memory", "200MB"),
    ):
        done = command_of(*command)
        assert done.returncode == 0, done.stderr


def test_the_chat_offers_the_recipe_of_the_name(command, environment, user, place, tmp_path):
    source = write_checkpoint(tmp_path / "source", config_of())
    with serving(source, "openai/gpt-oss-20b") as hub:
        online = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "hf")}
        terminal = Terminal([*command, "chat", "gpt-oss:20b:q8"], environment | user | online)
        terminal.expect(r"gpt-oss:20b:q8 is not installed")
        terminal.expect(r"\[y/N\]")
        terminal.line("y")
        terminal.wait("/exit leaves")
        terminal.line("/exit")
        assert terminal.exit_status() == 0
    assert provenance_of(place / "openai--gpt-oss-20b--q8")["recipe"] == "mxfp4-q8"


@pytest.mark.parametrize("columns", [40, 100])
def test_the_list_fits_the_terminal(command, environment, user, place, old_place, tmp_path, demo_folder, columns):
    shutil.copytree(demo_folder, place / "openai--gpt-oss-20b")
    shutil.copytree(demo_folder, place / "somebody--tuned--q8")
    shutil.copytree(demo_folder, tmp_path / ".lmstudio/models/lmstudio-community/gpt-oss-20b-MLX-8bit")
    interrupted_at(place / "openai--gpt-oss-120b")
    stamp_of(place / "somebody--tuned--q8").touch()
    os.utime(stamp_of(place / "somebody--tuned--q8"), (1e9, 1e9))
    used = time.strftime("%Y-%m-%d %H:%M", time.localtime(1e9))
    terminal = Terminal([*command, "models"], environment | user, columns=columns)
    assert terminal.exit_status() == 0
    rows = terminal.seen.splitlines()
    assert all(len(row) <= columns for row in rows)
    seen = " ".join(terminal.seen.split())
    for part in ("gpt-oss-20b ", "gpt-oss-120b ", "somebody/tuned:q8 ", used, "LM Studio", "mxfp4-q8"):
        assert part in seen
    assert "interrupted: the same `convert` resumes it" in seen
    if columns == 40:
        sizes = [line for line in rows if " MB" in line]
        assert len(sizes) == 4
        entry = [row.split(maxsplit=1) for row in rows[rows.index("somebody/tuned:q8") + 2 :][:3]]
        assert entry == [["recipe", "mxfp4-q4"], ["from", "checkpoint"], ["last", f"used  {used}"]]
        entry = rows[rows.index("gpt-oss-120b") + 1 :][:4]
        assert [row[: row.rindex("  ")].strip() for row in entry] == ["size", "recipe", "from", "last used"]
        assert entry[3].endswith("  interrupted")
    else:
        assert any(row.startswith("│ somebody/tuned:q8") for row in rows)


def test_the_screen_of_a_narrow_terminal(command, environment, user, place, tmp_path, demo_folder):
    for folder in (
        place / "openai--gpt-oss-20b",
        tmp_path / ".lmstudio/models/lmstudio-community/gpt-oss-20b-MLX-8bit",
    ):
        shutil.copytree(demo_folder, folder)
    (place.parent / "default-model").write_text("gpt-oss-20b")
    terminal = Terminal([*command, "models"], environment | user, columns=40)
    golden("models-in-40-columns", terminal)
    assert terminal.exit_status() == 0


def test_another_programs_model(command_of, tmp_path, demo_folder):
    folder = shutil.copytree(demo_folder, tmp_path / ".lmstudio/models/somebody/gpt-oss-MLX")
    assert [(each["name"], each["program"]) for each in listed(command_of)] == [("somebody/gpt-oss-MLX", "LM Studio")]
    assert command_of("generate", "somebody/gpt-oss-MLX", *QUESTION).stdout == ANSWER
    done = command_of("models", "rm", "somebody/gpt-oss-MLX", "--yes")
    assert_one_line_error(done, "belongs to LM Studio: remove it there")
    assert load(folder)


@pytest.mark.parametrize(("answer", "removed"), [("", False), ("n\n", False), ("y\n", True)])
def test_nothing_is_removed_that_nobody_agreed_to(command_of, place, demo_folder, answer, removed):
    for tag in ("", "--q8"):
        shutil.copytree(demo_folder, place / f"openai--gpt-oss-20b{tag}")
    done = command_of("models", "rm", "gpt-oss:20b:q8", stdin=answer)
    assert "remove gpt-oss-20b:q8 (" in done.stderr
    assert (done.returncode == 0) == removed
    assert sorted(path.name for path in place.iterdir()) == [
        "openai--gpt-oss-20b",
        *([] if removed else ["openai--gpt-oss-20b--q8"]),
    ]
    assert removed or "nothing was removed: answer y, or give --yes" in done.stderr


def test_what_is_removed_is_forgotten(command_of, place, old_place, demo_folder):
    folder = shutil.copytree(demo_folder, place / "openai--gpt-oss-20b")
    assert command_of("chat", "gpt-oss-20b", stdin="Hello").returncode == 0
    assert command_of("models", "default", "gpt-oss-20b").stdout == "gpt-oss-20b\n"
    assert (place.parent / "last-model").read_text() == str(folder)
    assert command_of("models", "rm", folder, "--yes").stdout == "removed gpt-oss-20b\n"
    assert list(place.iterdir()) == []
    assert command_of("models", "default").stdout == "none\n"
    assert_one_line_error(command_of("models", "rm", "gpt-oss-20b", "--yes"), "there is no model 'gpt-oss-20b'")


def test_a_link_is_removed_and_not_what_it_leads_to(command_of, place, demo_folder):
    (place / "openai--gpt-oss-20b").symlink_to(demo_folder)
    assert command_of("models", "rm", "gpt-oss-20b", "--yes").returncode == 0
    assert list(place.iterdir()) == []
    assert load(demo_folder)


def test_a_model_in_use_stays(command_of, old_place, demo_folder):
    folder = shutil.copytree(demo_folder, old_place / "somebody--tuned")
    model, another = load(folder), load(folder)
    for step in (("rm", "somebody/tuned", "--yes"), ("move",)):
        assert_one_line_error(command_of("models", *step), "somebody/tuned is in use by another gptoss-mlx")
    del model
    gc.collect()
    assert_one_line_error(command_of("models", "rm", "somebody/tuned", "--yes"), "in use")
    del another
    gc.collect()
    assert command_of("models", "rm", "somebody/tuned", "--yes").returncode == 0
    assert not folder.exists()


@pytest.mark.parametrize(
    ("args", "work"),
    [
        (("verify", NAME), "gptoss_convert.verification.verify"),
        (("compare", str(CHECKPOINT), NAME), "gptoss_convert.fidelity.compare"),
        (("upload", NAME, "somebody/tuned"), "gptoss_convert.publishing.upload"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_model_stays_while_a_command_reads_it(command_of, user, old_place, demo_folder, monkeypatch, args, work):
    shutil.copytree(demo_folder, old_place / "somebody--tuned")
    for name, value in user.items():
        monkeypatch.setenv(name, value)

    def in_the_middle(*_):
        for step in (("rm", NAME, "--yes"), ("move",)):
            assert_one_line_error(command_of("models", *step), f"{NAME} is in use by another gptoss-mlx")
        raise InterruptedError

    monkeypatch.setattr(work, in_the_middle)
    with pytest.raises(InterruptedError):
        cli(args, standalone_mode=False)
    assert command_of("models", "rm", NAME, "--yes").returncode == 0


def test_an_interrupted_conversion(command_of, place):
    interrupted_at(place / "local--checkpoint--q8")
    (entry,) = listed(command_of)
    assert (entry["name"], entry["finished"], entry["recipe"]) == ("local/checkpoint:q8", False, "mxfp4-q8")
    descriptor = os.open(entry["folder"], os.O_RDONLY)
    assert files.lock(descriptor)  # as a conversion that runs has it
    assert "being converted" in command_of("models").stdout
    done = command_of("models", "rm", "local/checkpoint:q8", "--yes")
    assert_one_line_error(done, "local/checkpoint:q8 is being converted by another gptoss-mlx")
    os.close(descriptor)
    assert "interrupted" in command_of("models").stdout
    done = command_of("convert", CHECKPOINT, "--recipe", "mxfp4-q8")
    assert done.returncode == 0
    assert [(each["name"], each["finished"]) for each in listed(command_of)] == [("local/checkpoint:q8", True)]
    interrupted_at(place / "local--another")
    assert command_of("models", "rm", "local/another", "--yes").stdout == "removed local/another\n"
    assert [path.name for path in place.iterdir()] == ["local--checkpoint--q8"]


def test_the_default(command_of, place, tmp_path, demo_folder):
    for name in ("somebody--tuned", "openai--gpt-oss-20b--q8"):
        shutil.copytree(demo_folder, place / name)
    assert command_of("models", "default").stdout == "none\n"
    assert command_of("models", "default", "gpt-oss:20b:q8").stdout == "gpt-oss-20b:q8\n"
    assert command_of("chat", "somebody/tuned", stdin="Hello").returncode == 0
    assert command_of("generate", *QUESTION).stdout == ANSWER
    used = {each["name"]: each["used"] for each in listed(command_of)}
    assert used["gpt-oss-20b:q8"] > used["somebody/tuned"]
    assert "default: gpt-oss-20b:q8" in command_of("models").stderr
    assert_one_line_error(command_of("models", "default", "gpt-oss-120b"), "not installed")
    unset = command_of("models", "default", "--unset").stdout
    assert unset == f"none; the model used last is {place / 'somebody--tuned'}\n"
    shutil.copytree(demo_folder, tmp_path / "mine")
    assert command_of("models", "default", "~/mine").stdout == f"{tmp_path / 'mine'}\n"
    assert command_of("generate", *QUESTION).stdout == ANSWER


# The place in which models were kept.


def test_a_move_is_a_rename_after_which_all_goes_on(command_of, place, old_place, demo_folder):
    old = shutil.copytree(demo_folder, old_place / "openai--gpt-oss-20b")
    interrupted_at(old_place / "local--checkpoint")
    assert command_of("chat", "gpt-oss-20b", "--temperature", "0", stdin="What is 12 + 30?").stdout == ANSWER
    assert "gpt-oss-20b" in command_of("models").stdout
    assert f"`gptoss-mlx models move` moves to {place}" in command_of("models").stderr
    used = {each["name"]: each["used"] for each in listed(command_of)}
    file = (old / "config.json").stat().st_ino
    assert command_of("models", "move").returncode == 0
    assert (place / old.name / "config.json").stat().st_ino == file
    assert {path.name for path in old_place.iterdir() if "--" in path.name} == set()
    assert {each["name"]: each["used"] for each in listed(command_of)} == used
    resumed = command_of("chat", "--resume", "--temperature", "0", stdin="What is 40 - 7?")
    assert resumed.stdout == "40 - 7 = 33\n"
    assert "re-reading" not in resumed.stderr
    assert command_of("generate", *QUESTION).stdout == ANSWER
    assert command_of("convert", CHECKPOINT, "--recipe", "mxfp4-q8", place / "local--checkpoint").returncode == 0
    assert f"all models are in {place}" in command_of("models", "move").stdout


def test_what_was_in_the_cache_counts(command, environment, command_of, user, place, old_place, demo_folder):
    """The model used last, and the questions that were typed."""
    (old_place / "last-model").write_text(str(demo_folder))
    (old_place / "history").write_text("\n# 2026-01-02 03:04:05.678901\n+What is 12 + 30?\n")
    assert command_of("generate", *QUESTION).stdout == ANSWER
    terminal = Terminal([*command, "chat", "--temperature", "0"], environment | user)
    terminal.wait("^>$")
    terminal.keys("\x1b[A")
    terminal.wait(r"^> What is 12 \+ 30\?$")
    terminal.line("")
    terminal.wait("^12 \\+ 30 = 42$")
    terminal.key("d")
    assert terminal.exit_status() == 0
    assert [path.name for path in old_place.iterdir()] == []
    assert {"last-model", "history"} <= {path.name for path in place.parent.iterdir()}


def test_nothing_is_moved_onto_another_model(command_of, place, old_place, demo_folder):
    for folder in (place, old_place):
        shutil.copytree(demo_folder, folder / "openai--gpt-oss-20b")
    shutil.copytree(demo_folder, old_place / "somebody--tuned")
    done = command_of("models", "move")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"moved somebody/tuned to {place}",
        f"error: {place / 'openai--gpt-oss-20b'} exists already: remove it, or {old_place / 'openai--gpt-oss-20b'}",
    ]
    assert load(old_place / "openai--gpt-oss-20b")


def test_another_disk(command_of, old_place, demo_folder):
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK) or memory.stat().st_dev == old_place.stat().st_dev:
        pytest.skip("there is no second file system here")
    shutil.copytree(demo_folder, old_place / "openai--gpt-oss-20b")
    data = memory / f"gptoss-mlx-test-{os.getpid()}"
    try:
        done = command_of("models", "move", XDG_DATA_HOME=str(data))
        assert_one_line_error(done, "it is on another disk; it stays, and can be used there")
        assert list((data / "gptoss-mlx" / "models").iterdir()) == []
        assert command_of("generate", "gpt-oss-20b", *QUESTION, XDG_DATA_HOME=str(data)).stdout == ANSWER
    finally:
        shutil.rmtree(data, ignore_errors=True)


@pytest.mark.parametrize(("answer", "moved"), [("n", False), ("", True)])
def test_one_question(command, environment, user, place, old_place, demo_folder, answer, moved):
    shutil.copytree(demo_folder, old_place / "openai--gpt-oss-20b")
    terminal = Terminal([*command, "models"], environment | user)
    terminal.expect(r"Move to .* \[Y/n\]")
    terminal.line(answer)
    assert terminal.exit_status() == 0
    assert (place / "openai--gpt-oss-20b").exists() == moved
    assert (old_place / "openai--gpt-oss-20b").exists() != moved
    again = Terminal([*command, "models"], environment | user)
    assert again.exit_status() == 0
    assert b"[Y/n]" not in again.sent
    assert (b"`gptoss-mlx models move` moves" in b" ".join(again.sent.split())) != moved
