"""`gptoss-mlx` without a command, in a real pseudo-terminal: first use, and every use after it."""

import json
import shutil

import pexpect
import pytest

from checkpoints import config_of, write_checkpoint
from convert.hub import serving
from gptoss_mlx.cli import first_run
from gptoss_mlx.cli import offer as offers
from gptoss_mlx.errors import GptOssError
from gptoss_mlx.memory.devices import Device
from gptoss_mlx.model import model_store
from terminal.terminals import Spawn

ASKED = "a number, or q to leave: "
READY = "/exit leaves"


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


@pytest.fixture
def start(command, environment, home):
    """`gptoss-mlx` in a terminal of 40 lines by 240 columns, with a home of its own."""

    def start(*words, **changes):
        places = {"GPTOSS_MLX_HOME": str(home), "HOME": str(home.parent), "XDG_CACHE_HOME": str(home.parent)}
        own = places | {"PROMPT_TOOLKIT_NO_CPR": "1", "COLUMNS": "240"}
        return Spawn(
            command[0],
            [*command[1:], *words],
            env=environment | own | changes,
            dimensions=(40, 240),
            encoding="utf-8",
            timeout=30,
        )

    return start


def of_the_smaller_model(shown: str) -> list[str]:
    """The lines as they are on every machine: without those of the larger model, which is offered where it fits."""
    return [line for line in shown.splitlines() if "gpt-oss-120b" not in line]


def leave(child, status=0):
    """Wait for the end; returns what was still shown."""
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == status
    assert "Traceback" not in child.before
    return child.before


def chat_and_leave(child):
    child.expect_exact(READY)
    child.sendline("/exit")
    leave(child)


def test_first_use_tells_what_there_is(start, home):
    child = start()
    child.expect_exact(ASKED)
    first, *lines = of_the_smaller_model(child.before)
    assert first.startswith("Welcome to gptoss-mlx")
    facts, choices = lines[:7], lines[7:]
    assert [line.split(":")[0].strip() for line in facts[:3]] == ["device", "memory", "disk"]
    assert str(home) in facts[2]
    for line, text in zip(facts[3:], (" of memory", " of disk, and ", " decode: ", " recipe mxfp4-"), strict=True):
        assert line.startswith("  gpt-oss-20b ")
        assert text in line
    assert [line[0] for line in choices] == ["1", "2", "3"]
    assert "13.8 GB, 18 minutes" in choices[0]
    child.sendline("4")
    child.expect_exact("4 is not one of them")
    child.expect_exact(ASKED)
    child.sendline("")
    leave(child)
    assert not home.exists()


@pytest.mark.parametrize(("key", "status"), [("q\r", 0), ("\x04", 0), ("\x03", 130)])
def test_leaving(start, key, status):
    child = start()
    child.expect_exact(ASKED)
    child.send(key)
    leave(child, status)


def test_a_folder_which_is_then_the_model_used_last(start, home, tmp_path, demo_folder):
    folder = shutil.copytree(demo_folder, tmp_path / "a folder")
    child = start()
    child.expect_exact(ASKED)
    child.sendline("2")
    child.sendline(str(tmp_path))
    child.expect_exact("without config.json and weights of its own")
    child.sendline("nothing\x1b[2J")
    child.expect("error: there is no model")
    child.sendline(str(folder))
    chat_and_leave(child)
    assert (home / model_store.LAST_USED).read_text() == str(folder)
    child = start()
    child.expect_exact(f"Chat with {folder}, the model used last.")
    chat_and_leave(child)
    shutil.rmtree(folder)
    child = start()
    child.expect_exact(f"{folder}, the model used last, is gone")
    child.expect_exact(ASKED)
    child.sendline("q")
    leave(child)


def test_the_demo(start):
    child = start()
    child.expect_exact(ASKED)
    child.sendline("3")
    child.expect_exact("347 + 285 = 632")
    chat_and_leave(child)


def test_download(start, home, tmp_path):
    source = write_checkpoint(tmp_path / "source", config_of())
    with serving(source, "openai/gpt-oss-20b") as hub:
        child = start(HF_ENDPOINT=hub.address, HF_HOME=str(tmp_path / "hf"))
        child.expect_exact(ASKED)
        child.sendline("1")
        chat_and_leave(child)
    assert (home / model_store.LAST_USED).read_text() == str(home / "openai--gpt-oss-20b")


def test_models_that_are_here(start, home, demo_folder):
    for name in ("openai--gpt-oss-20b", "somebody--tuned"):
        shutil.copytree(demo_folder, home / name)
    (home / "a--b").mkdir()  # without a config.json
    shutil.copytree(demo_folder, home / "a--\x1b[2J")  # no name of a repository
    child = start()
    child.expect_exact(ASKED)
    choices = of_the_smaller_model(child.before)[4:]
    assert choices[:2] == ["1  chat with gpt-oss-20b", "2  chat with somebody/tuned"]
    assert len(choices) == 4
    assert not any("download" in choice for choice in choices)
    child.sendline("2")
    chat_and_leave(child)


def test_another_programs_model_is_offered(start, home, demo_folder):
    shutil.copytree(demo_folder, home.parent / ".lmstudio" / "models" / "somebody" / "gpt-oss-20b-MLX")
    child = start()
    child.expect_exact(ASKED)
    assert "1  chat with somebody/gpt-oss-20b-MLX, which LM Studio has on this disk" in child.before
    assert "2  download gpt-oss-20b" in child.before
    child.sendline("1")
    chat_and_leave(child)


def test_one_recipe_of_several_is_no_reason_to_download(start, home, demo_folder):
    shutil.copytree(demo_folder, home / "openai--gpt-oss-20b--q8")
    child = start()
    child.expect_exact(ASKED)
    assert "1  chat with gpt-oss-20b:q8" in child.before
    assert "download" not in child.before
    child.sendline("q")
    leave(child)


def test_the_default_counts_before_the_model_used_last(start, home, demo_folder):
    shutil.copytree(demo_folder, home / "somebody--tuned")
    (home / model_store.LAST_USED).write_text("/nothing")
    (home / model_store.DEFAULT).write_text("somebody/tuned")
    chat_and_leave(start())


def test_the_model_of_the_config_file_counts_first(start, home, tmp_path, demo_folder):
    home.mkdir()
    (home / model_store.LAST_USED).write_text("/nothing")
    (tmp_path / "config.toml").write_text(f'[chat]\nmodel = "{demo_folder}"\n')
    chat_and_leave(start(GPTOSS_MLX_CONFIG=str(tmp_path / "config.toml")))


@pytest.mark.parametrize("content", [b"\0\n\xff\x1b[2J", b"x" * 100_000])
def test_a_damaged_note_of_the_model_used_last(start, home, content):
    home.mkdir()
    (home / model_store.LAST_USED).write_bytes(content)
    child = start()
    child.expect_exact("is gone")
    assert "\x1b" not in child.before
    child.expect_exact(ASKED)
    child.sendline("q")
    leave(child)


def test_without_a_terminal_it_is_the_help(run):
    done = run()
    assert done.returncode == 2
    assert "Example: gptoss-mlx chat gpt-oss-20b" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("name", ["~nobody/model", "x" * 5000, "a/" + "x" * 5000, "\x1b[2J"])
def test_names_that_no_folder_can_have(name):
    with pytest.raises(GptOssError, match=r"no model|not installed"):
        model_store.resolve(name)


def test_chat_goes_on_where_nothing_can_be_noted(run, tmp_path, demo_folder):
    (tmp_path / "file").write_text("")
    done = run(
        "chat", demo_folder, "--temperature", 0, stdin="What is 12 + 30?", GPTOSS_MLX_HOME=str(tmp_path / "file")
    )
    assert done.stdout == "12 + 30 = 42\n"


@pytest.mark.parametrize(
    ("device", "names"),
    [("mac-16gb", ["gpt-oss-20b"]), ("mac-64gb", ["gpt-oss-20b"]), ("mac-96gb", ["gpt-oss-20b", "gpt-oss-120b"])],
)
def test_the_larger_model_is_offered_where_it_fits(monkeypatch, home, device, names):
    monkeypatch.setenv("GPTOSS_MLX_HOME", str(home))
    monkeypatch.setattr(first_run, "this_machine", lambda: Device.named(device))
    found = first_run._offers()
    assert list(found) == names
    downloads = [lines[0] for text, lines in first_run._choices(found) if text.startswith("download ")]
    assert [(command, name) for command, name, *_ in downloads] == [("convert", name) for name in names]
    assert [words[-2:] for words in downloads] == [("--recipe", each.recipe) for each in found.values()]


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("mac-16gb", "of memory with 16,384 tokens: it fits, with experts of "),
        ("mac-24gb", "of memory with 16,384 tokens: it fits"),
        ("mac-8gb", "with less it reads from the disk as it runs, and is slower"),
    ],
)
def test_whether_it_fits_is_said(tmp_path, device, words):
    found = offers.offer_into(tmp_path, "openai/gpt-oss-20b", Device.named(device))
    memory, disk, speed, why = found.lines(tmp_path)
    assert words in memory
    assert disk.startswith("takes 1")
    assert speed.startswith("decode: ")
    assert why == found.why


def test_a_machine_that_is_too_small_is_told(tmp_path):
    found = offers.offer_into(tmp_path, "openai/gpt-oss-120b", Device("x", 10**9, None, "kernels"))
    assert next(found.lines(tmp_path)).endswith("of memory or more: it does not fit")


def test_too_little_disk_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(offers, "free_disk", lambda path: 10**9)
    found = offers.offer_into(tmp_path, "openai/gpt-oss-20b", Device.named("mac-24gb"))
    assert [line for line in found.lines(tmp_path) if "not enough is free; set GPTOSS_MLX_HOME" in line]


@pytest.mark.parametrize(
    ("name", "begins"),
    [
        ("gpt-oss-safeguard:20b", "gpt-oss-safeguard:20b is not installed. Here it:\r\n  takes "),
        ("somebody/tuned", "somebody/tuned is not installed.\r\nDownload it and "),
    ],
)
def test_the_question_says_once_what_is_not_installed(start, name, begins):
    child = start("chat", name)
    child.expect_exact("[y/N]")
    assert child.before.startswith(begins)
    assert child.before.count("installed") == 1
    assert "Download it and convert to " in child.before
    child.sendline("n")
    leave(child, 1)


def test_the_question_before_a_download_has_the_same_figures(start, home, tmp_path):
    source = write_checkpoint(tmp_path / "source", config_of())
    with serving(source, "openai/gpt-oss-20b") as hub:
        child = start("chat", "gpt-oss-20b", HF_ENDPOINT=hub.address, HF_HOME=str(tmp_path / "hf"))
        child.expect_exact("gpt-oss-20b is not installed. Here it:")
        child.expect_exact(f"Download 13.8 GB and convert to {home / 'openai--gpt-oss-20b'}?")
        lines = child.before.splitlines()[1:]
        for line, text in zip(lines, (" of memory", " of disk, and ", "decode: ", "recipe mxfp4-"), strict=False):
            assert text in line
        child.sendline("n")
        leave(child, 1)
        assert not hub.log
        child = start("chat", "gpt-oss-20b", HF_ENDPOINT=hub.address, HF_HOME=str(tmp_path / "hf"))
        child.expect_exact("convert to")
        child.sendline("y")
        chat_and_leave(child)
    recipe = json.loads((home / "openai--gpt-oss-20b" / "provenance.json").read_text())["recipe"]
    assert any(f"recipe {recipe}, " in line for line in lines)
