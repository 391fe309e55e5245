"""Folders and names that somebody else has prepared: nothing is followed, deleted or changed that is not our own."""

import os
import shutil
import stat

import pytest

from gptoss_mlx.demo import CHECKPOINT
from gptoss_mlx.errors import GptOssError
from gptoss_mlx.evaluation.journal import EvaluationJournal
from gptoss_mlx.evaluation.text import LogProbabilities
from gptoss_mlx.terminal.history import open_history


@pytest.fixture
def victim(tmp_path):
    """A folder of the user's with what a careless program would delete, and what tells whether anything has changed."""
    folder = tmp_path / "victim"
    folder.mkdir(mode=0o755)
    for name in ("notes.txt", "model-00001-of-00002.safetensors", "000000000-000000100.safetensors"):
        (folder / name).write_text("precious")
    return folder, lambda: (
        sorted((p.name, p.read_text()) for p in folder.iterdir()),
        stat.S_IMODE(os.stat(folder).st_mode),
    )


def assert_one_line(done, *parts, status=1):
    assert done.returncode == status
    (line,) = done.stderr.splitlines()
    assert all(part in line for part in parts), line


def test_an_unfinished_conversion_is_not_looked_for_behind_a_link(run, tmp_path, victim):
    folder, state = victim
    before = state()
    (tmp_path / ".made.partial").symlink_to(folder)
    assert_one_line(run("convert", CHECKPOINT, tmp_path / "made"), ".made.partial", "symbolic link")
    assert state() == before
    assert (tmp_path / ".made.partial").is_symlink()
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("source", [CHECKPOINT, "nothing"])
def test_a_folder_of_the_users_under_that_name_stays(run, tmp_path, victim, source):
    folder, state = victim
    before = state()
    folder.rename(tmp_path / ".made.partial")
    (tmp_path / "nothing").mkdir()
    done = run("convert", tmp_path / source, tmp_path / "made")
    assert_one_line(done, ".made.partial", "which no conversion has written")
    (tmp_path / ".made.partial").rename(folder)
    assert state() == before


def test_what_an_older_conversion_left_is_cleared(run, tmp_path):
    partial = tmp_path / ".made.partial"
    partial.mkdir()
    for name in ("model-00001-of-00009.safetensors", "journal.json", "._config.json", ".DS_Store"):
        (partial / name).write_text("{}")
    assert run("convert", CHECKPOINT, tmp_path / "made").returncode == 0
    assert not (tmp_path / "made" / "model-00001-of-00009.safetensors").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_not_used(run, tmp_path):
    partial = tmp_path / ".made.partial"
    partial.mkdir()
    os.chown(partial, 65534, 65534)
    assert_one_line(run("convert", CHECKPOINT, tmp_path / "made"), ".made.partial", "another user")


def chat_in(run, demo_folder, home):
    run("chat", demo_folder, "--temperature", 0, stdin="What is 12 + 30?\n", GPTOSS_MLX_HOME=str(home))
    return session_in(home)


def session_in(home):
    """The name of the one kept session, and its folder."""
    (transcript,) = (home / "sessions").glob("*.json")
    return transcript.stem, transcript.with_suffix(".kv")


@pytest.fixture(scope="module")
def kept_home(tmp_path_factory):
    """A place for a home with a session, which the first test that needs one makes."""
    return tmp_path_factory.mktemp("kept") / "home"


@pytest.fixture
def session(run, demo_folder, kept_home, tmp_path):
    """The name of a kept session in `tmp_path / "home"`, and its folder."""
    if not kept_home.exists():
        chat_in(run, demo_folder, kept_home)
    shutil.copytree(kept_home, tmp_path / "home")
    return session_in(tmp_path / "home")


def replaced_by_link(kept, folder):
    for path in kept.iterdir():
        path.unlink()
    kept.rmdir()
    kept.symlink_to(folder)


@pytest.mark.parametrize("line", ["chat --resume", "sessions delete --yes", "sessions delete --yes --kv-only"])
def test_a_kv_state_that_is_a_link(run, session, tmp_path, victim, line):
    folder, state = victim
    before = state()
    name, kept = session
    replaced_by_link(kept, folder)
    done = run(*line.split(), name, stdin="Hello\n", GPTOSS_MLX_HOME=str(tmp_path / "home"))
    assert_one_line(done, kept.name, "symbolic link")
    assert state() == before


def test_other_files_beside_a_kv_state_stay(run, session, tmp_path):
    name, kept = session
    (kept / "notes.txt").write_text("precious")
    assert run("sessions", "delete", name, "--yes", GPTOSS_MLX_HOME=str(tmp_path / "home")).returncode == 0
    assert [path.name for path in kept.iterdir()] == ["notes.txt"]


def test_a_home_that_is_a_link_is_the_users_choice(run, demo_folder, tmp_path):
    (tmp_path / "real" / "kept").mkdir(parents=True, mode=0o755)
    (tmp_path / "home").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "sessions").symlink_to(tmp_path / "real" / "kept")
    name, _ = chat_in(run, demo_folder, tmp_path / "home")
    assert stat.S_IMODE((tmp_path / "real" / "kept").stat().st_mode) == 0o755
    assert run("sessions", "delete", name, "--yes", GPTOSS_MLX_HOME=str(tmp_path / "home")).returncode == 0
    assert list((tmp_path / "real" / "kept").iterdir()) == []


def test_the_note_of_the_last_model_is_no_link(run, demo_folder, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "precious").write_text("precious")
    (home / "last-model").symlink_to(tmp_path / "precious")
    assert run("chat", demo_folder, stdin="Hello\n", GPTOSS_MLX_HOME=str(home)).returncode == 0
    assert (tmp_path / "precious").read_text() == "precious"
    assert (home / "last-model").read_text() == str(demo_folder)


def test_files_of_an_evaluation_are_no_links(monkeypatch, tmp_path):
    monkeypatch.setenv("GPTOSS_MLX_HOME", str(tmp_path))
    (tmp_path / "precious").write_text("precious")
    journal, predictions = EvaluationJournal({}), LogProbabilities(tmp_path / "predictions", [[1, 2, 3, 4]], 10)
    journal.path.parent.mkdir()
    for path in (journal.path, predictions.path):
        path.symlink_to(tmp_path / "precious")
    for write in (journal.open, predictions.make, lambda: predictions.measure(None, 0, None)):
        with pytest.raises(GptOssError, match="cannot write"):
            write()
    assert (tmp_path / "precious").read_text() == "precious"


def test_the_history_is_no_link(tmp_path, capsys):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "precious").chmod(0o644)
    (tmp_path / "history").symlink_to(tmp_path / "precious")
    open_history(tmp_path / "history").store_string("Hello")
    assert "the history of messages is not saved" in capsys.readouterr().err
    assert (tmp_path / "precious").read_text() == "precious"
    assert stat.S_IMODE((tmp_path / "precious").stat().st_mode) == 0o644
