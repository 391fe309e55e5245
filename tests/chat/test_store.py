"""The entries of the store: names, locks, limits, and files that others change."""

import errno
import fcntl
import os
import pwd
import shutil
import stat
import sys
import time
from functools import partial

import pytest

from chat.conversing import make_session
from chat.storing import QUESTIONS, resumed, talk
from checkpoints import add_apple_doubles
from gptoss_mlx import GptOssError
from gptoss_mlx.chat.autosave import SessionAutosave
from gptoss_mlx.chat.store import Store, sessions_folder

brief_talk = partial(talk, max_tokens=4)  # its answers do not matter here


def test_states_are_bounded_and_the_oldest_go_first(model, store):
    for question in QUESTIONS[:3]:
        autosave = SessionAutosave(store)
        brief_talk(model, autosave, [question])
        autosave.leave()
        time.sleep(0.02)
    sizes = [entry.state_bytes for entry in store]
    assert all(sizes)
    session, _, autosave = resumed(model, store, kv_limit=sizes[0] + sizes[1])
    autosave.save(session, kv=True)
    assert [entry.state_bytes > 0 for entry in store] == [True, True, False]
    autosave.leave()
    session, _, autosave = resumed(model, store, kv_limit=10)
    autosave.save(session, kv=True)
    assert not any(entry.state_bytes for entry in store)
    assert len(list(store)) == 3
    autosave.leave()
    session, positions, autosave = resumed(model, store, kv_limit=None)
    list(session.send("Hello"))
    autosave.save(session, kv=True)
    assert positions == store.find().state_bytes == 0
    assert autosave.reread_reason == "KV caches are not saved"


def test_names(model, store):
    autosaves = [SessionAutosave(store) for _ in range(3)]
    for autosave in autosaves[:2]:
        brief_talk(model, autosave, ["What is 12 + 30?"])
    assert [autosave.name for autosave in autosaves] == ["what-is-12-30", "what-is-12-30-2", None]
    with pytest.raises(GptOssError, match="nothing has been said"):
        autosaves[2].rename("x")
    for wrong in ("", "../x", ".x", "a/b", "x" * 81, "-x", "𐐀" * 80):
        with pytest.raises(GptOssError, match="no name for a session"):
            autosaves[0].rename(wrong)
    with pytest.raises(GptOssError, match="already"):
        autosaves[0].rename("what-is-12-30-2")
    autosaves[0].rename("Sums, small")
    session = make_session(model)
    list(session.send("Hello"))
    autosaves[0].save(session, kv=True)
    assert store.find("Sums").state_bytes > 0
    assert store.find("Sums").name == "Sums, small"
    with pytest.raises(GptOssError, match="no session 'fly'"):
        store.find("fly")
    autosaves[2].save(session, kv=False)
    assert autosaves[2].name == "hello"
    autosaves[2].leave()
    with store.lock(store.find("hello")) as lock:
        lock.delete()
    assert [entry.name for entry in store] == ["Sums, small", "what-is-12-30-2"]


def test_letters_that_are_the_same_to_some_disks(model, store):
    autosave = SessionAutosave(store)
    brief_talk(model, autosave, ["Hello"])
    autosave.rename("HELLO")
    other = SessionAutosave(store)
    brief_talk(model, other, ["Hello"])
    assert other.name == "hello-2"
    with pytest.raises(GptOssError, match="already"):
        other.rename("Hello")
    autosave.rename("Hello")
    assert {entry.name for entry in store} == {"Hello", "hello-2"}


def test_the_longest_name_can_be_used(model, store):
    autosave = SessionAutosave(store)
    session = brief_talk(model, autosave, ["𐐀" * 70])
    autosave.rename("x" + "字" * 79)
    list(session.send("Hello"))
    autosave.save(session, kv=True)
    autosave.leave()
    assert resumed(model, store)[1] > 0


def test_one_process_at_a_time(model, store):
    autosave = SessionAutosave(store)
    session = brief_talk(model, autosave, ["Hello"])
    with pytest.raises(GptOssError, match="in use"):
        SessionAutosave(store, store.find())
    with pytest.raises(GptOssError, match="in use"):
        store.lock(store.find())
    autosave.leave()
    other = SessionAutosave(store, store.find())
    autosave.save(session, kv=True)
    assert (autosave.name, other.name) == ("hello-2", "hello")
    other.leave()


def test_another_process_that_takes_the_name_first(model, store, monkeypatch):
    """Between the look at the names and the lock."""
    other, autosave = SessionAutosave(store), SessionAutosave(store)
    brief_talk(model, other, ["Hello"])
    monkeypatch.setattr(Store, "taken", lambda store: set())
    session = brief_talk(model, autosave, ["Hello"])
    assert autosave.name == "hello-2"
    other.leave()
    third = SessionAutosave(store)
    third.save(session, kv=False)
    assert third.name == "hello-3"


def test_a_file_system_without_locks(model, store, monkeypatch):
    def flock(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    autosave = SessionAutosave(store)
    brief_talk(model, autosave, ["Hello"])
    autosave.leave()
    assert resumed(model, store)[1] > 0


def test_what_was_deleted_or_renamed_while_it_was_waited_for(store):
    """The lock is that of the folder which is there now."""
    lock = store.new("Hello")
    opened, real = [], os.open

    def delete_after_opening(path, *args, **options):
        descriptor = real(path, *args, **options)
        if path == lock.entry.state and not opened:
            opened.append(descriptor)
            lock.delete()
        return descriptor

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", delete_after_opening)
        again = store.lock(lock.entry)
    with pytest.raises(GptOssError, match="in use"):
        store.lock(lock.entry)
    again.release()


def test_nothing_stays_of_a_question_that_was_taken_back(model, store):
    autosave = SessionAutosave(store)
    session = brief_talk(model, autosave, ["My secret is 4711."])
    session.undo()
    autosave.save(session, kv=False)
    assert autosave.name is None
    assert list(store.folder.iterdir()) == []
    list(session.send("Hello"))
    autosave.save(session, kv=True)
    assert [entry.name for entry in store] == ["hello"]


def test_states_in_use_stay_and_states_of_nobody_go(model, store):
    first, second = SessionAutosave(store), SessionAutosave(store, kv_limit=10)
    brief_talk(model, first, ["Hello"])
    nobody = store.folder / "nobody.kv"
    nobody.mkdir()
    (nobody / "000000000-000000009.safetensors").write_bytes(b"x" * 100)
    (store.folder / "file.kv").write_text("x")
    brief_talk(model, second, ["What is 12 + 30?"])
    assert not nobody.exists()
    assert [entry.state_bytes > 0 for entry in store] == [False, True]


def test_files_of_the_system_are_nobodys_sessions(model, store):
    autosave = SessionAutosave(store)
    session = brief_talk(model, autosave, QUESTIONS[:1])
    autosave.leave()
    names = [entry.name for entry in store]
    add_apple_doubles(store.folder)
    assert [entry.name for entry in store] == names
    assert store.taken() == set(names)
    again, positions, _ = resumed(model, store)
    assert again.transcript == session.transcript
    assert positions == session.prompt_cache.snapshots[-1].offset


def _removed(entry):
    shutil.rmtree(entry.transcript.parent)


def _without_state(entry):
    shutil.rmtree(entry.state)


def _state_is_a_file(entry):
    shutil.rmtree(entry.state)
    entry.state.write_text("x")


def _transcript_is_a_folder(entry):
    entry.transcript.unlink()
    entry.transcript.mkdir()


@pytest.mark.parametrize("damage", [_removed, _without_state, _state_is_a_file, _transcript_is_a_folder])
def test_whatever_happens_to_the_files_is_one_line(model, store, damage):
    autosave = SessionAutosave(store)
    session = brief_talk(model, autosave, ["Hello"])
    damage(store.find())
    list(session.send("What is 12 + 30?"))
    with pytest.raises(GptOssError, match=r"cannot (write|save)") as caught:
        autosave.save(session, kv=True)
    assert "[" not in str(caught.value)
    autosave.leave()


def test_a_folder_that_is_none_is_one_line(model, tmp_path):
    session = make_session(model)
    list(session.send("Hello"))
    path = tmp_path / "file"
    path.write_text("x")
    path.chmod(0o644)
    for folder in (path, path / "below"):
        with pytest.raises(GptOssError, match=r"cannot use .*hello.kv: Not a directory"):
            SessionAutosave(Store(folder)).save(session, kv=True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_nothing_stays_of_what_was_never_written(store):
    store.new("Hello").release()
    assert list(store.folder.iterdir()) == []


def test_only_the_owner_can_read(model, store):
    store.folder.mkdir(mode=0o755)
    autosave = SessionAutosave(store)
    session = brief_talk(model, autosave, ["Hello"])
    entry = store.find()
    entry.transcript.chmod(0o644)
    autosave.save(session, kv=True)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (store.folder, *store.folder.rglob("*"))}
    assert set(modes.values()) == {0o700, 0o600}
    assert all((mode == 0o700) == path.is_dir() for path, mode in modes.items())


def test_without_a_home(monkeypatch):
    def getpwuid(_):
        raise KeyError

    for name in ("GPTOSS_MLX_HOME", "HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", getpwuid)
    with pytest.raises(GptOssError, match="no home"):
        sessions_folder()


def test_where_sessions_are(monkeypatch, tmp_path):
    monkeypatch.setenv("GPTOSS_MLX_HOME", str(tmp_path))
    assert sessions_folder() == tmp_path / "sessions"
    monkeypatch.delenv("GPTOSS_MLX_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr(sys, "platform", "linux")
    assert sessions_folder() == tmp_path / "data" / "gptoss-mlx" / "sessions"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert sessions_folder() == tmp_path / "Library/Application Support/gptoss-mlx/sessions"
