"""Sessions on disk: what is kept, what is resumed from it, and what a kill or a damaged file costs."""

import errno
import fcntl
import json
import os
import pwd
import random
import re
import shutil
import signal
import stat
import subprocess
import sys
import time

import mlx.core as mx
import pytest

import gptoss_mlx
from checkpoints import add_apple_doubles
from gptoss_mlx import GptOssError, Sampling, Session, load
from gptoss_mlx.chat import state_files
from gptoss_mlx.chat.autosave import SessionAutosave
from gptoss_mlx.chat.store import Store, sessions_folder
from gptoss_mlx.chat.transcript import Transcript
from gptoss_mlx.demo import FUNCTIONS
from gptoss_mlx.files import replace_file
from gptoss_mlx.harmony.messages import Message
from gptoss_mlx.harmony.render import encode, render_message
from gptoss_mlx.memory.plan import EngineConfig

QUESTIONS = ["My locker code is 4711.", "What is 12 + 30?", "What is gptoss-mlx?", "What is 40 - 7?"]


@pytest.fixture(scope="module")
def model(demo_folder):
    return gptoss_mlx.load(demo_folder)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "sessions")


def make_session(model):
    return Session(
        model, functions=FUNCTIONS, sampling=Sampling(temperature=0), max_tokens=300, current_date="2026-01-02"
    )


def talk(model, autosave, questions=QUESTIONS):
    session = make_session(model)
    for question in questions:
        list(session.send(question))
        autosave.keep(session, kv=True)
    return session


def resumed(model, store, **options):
    autosave, session = SessionAutosave(store, store.find(), **options), make_session(model)
    return session, autosave.resume(session), autosave


def message_length(session, text):
    return len(encode(render_message(Message("user", text)), session.tokenizer))


def test_a_session_goes_on_as_if_it_had_never_ended(model, store):
    autosave = SessionAutosave(store)
    session = talk(model, autosave)
    while session.settle(100):
        pass
    autosave.keep(session, kv=True)
    autosave.leave()
    again, positions, _ = resumed(model, store)
    assert again.transcript == session.transcript
    assert positions == session.context_used
    question = "What is my locker code?"
    ours, theirs = list(session.send(question)), list(again.send(question))
    assert ours[:-1] == theirs[:-1]
    # Nothing but the message: its beginning was read ahead.
    opening = message_length(session, "") - 1
    assert theirs[-1].prefilled == ours[-1].prefilled == message_length(session, question) - opening + 2
    state = zip(session.prompt_cache.cache.arrays(), again.prompt_cache.cache.arrays(), strict=True)
    for left, right in state:
        end = session.context_used
        assert mx.array_equal(left[:, :, :end], right[:, :, :end])


@pytest.mark.parametrize("kv_bits", [8, 16])
def test_every_form_of_keys_and_values_is_kept(demo_folder, store, kv_bits):
    model = load(demo_folder, EngineConfig(4096, kv_bits, 64))
    autosave = SessionAutosave(store)
    session = talk(model, autosave)
    autosave.leave()
    again, positions, _ = resumed(model, store)
    assert positions == session.prompt_cache.snapshots[-1].offset > 200
    assert list(session.send("What is my locker code?"))[:-1] == list(again.send("What is my locker code?"))[:-1]


def test_a_turn_writes_only_what_is_new(model, store, monkeypatch):
    monkeypatch.setattr(state_files, "KV_CHUNK", 100)
    autosave, session = SessionAutosave(store), make_session(model)
    before: dict[str, float] = {}
    for question in QUESTIONS:
        list(session.send(question))
        autosave.keep(session, kv=True)
        files = {path.name: path.stat().st_mtime_ns for path in store.find().state.iterdir()}
        assert before.items() <= files.items()
        assert len(files) > len(before)
        before = files
    ends = [tuple(map(int, name.removesuffix(".safetensors").split("-"))) for name in sorted(before)]
    assert [start for start, _ in ends] == [0, *[end for _, end in ends[:-1]]]
    assert ends[-1][1] == session.prompt_cache.snapshots[-1].offset
    autosave.leave()
    assert resumed(model, store)[1] == ends[-1][1]


def test_what_was_taken_back_is_gone_from_the_disk(model, store):
    autosave = SessionAutosave(store)
    session = talk(model, autosave)
    session.undo()
    session.undo()
    list(session.send("What is 55 + 28?"))
    autosave.keep(session, kv=True)
    autosave.leave()
    again, positions, _ = resumed(model, store)
    assert again.messages == session.messages
    assert positions == session.prompt_cache.snapshots[-1].offset
    assert list(again.send("Hello"))[:-1] == list(session.send("Hello"))[:-1]


def test_without_the_state_it_is_read_again(model, store):
    autosave = SessionAutosave(store)
    session = talk(model, autosave)
    autosave.leave()
    expected = list(session.send("What is my locker code?"))
    with store.hold(store.find()) as held:
        held.remove_state()
    again, positions, autosave = resumed(model, store)
    assert (positions, autosave.reading_again) == (0, "its KV state is gone")
    events = list(again.send("What is my locker code?"))
    assert events[:-1] == expected[:-1]
    assert events[-1].prefilled > 200


def test_the_state_of_another_model_is_not_taken(model, store):
    autosave = SessionAutosave(store)
    talk(model, autosave)
    autosave.leave()
    session, positions, autosave = resumed(load(model.path, EngineConfig(4096, 8, 64)), store)
    assert (positions, autosave.reading_again) == (0, "its KV state is of another model or recipe")
    list(session.send("Hello"))
    autosave.keep(session, kv=True)
    autosave.leave()
    # From here on the state is that of the other one.
    _, positions, autosave = resumed(model, store)
    assert positions == 0
    autosave.leave()
    assert resumed(load(model.path, EngineConfig(4096, 8, 64)), store)[1] == session.prompt_cache.snapshots[-1].offset


@pytest.mark.parametrize("damage", ["truncated", "header", "name", "ids", "shape", "empty", "gap", "garbage"])
def test_a_damaged_state_is_as_good_as_none(model, store, damage):
    autosave = SessionAutosave(store)
    session = talk(model, autosave)
    autosave.leave()
    first, second, *_ = sorted(store.find().state.iterdir())
    arrays, metadata = mx.load(str(second), return_metadata=True)
    mx.eval(arrays)
    match damage:
        case "truncated":
            os.truncate(second, second.stat().st_size - 100)
        case "header":
            second.write_bytes(b"\xff" * 8 + second.read_bytes()[8:])
        case "name":
            mx.save_safetensors(str(second), {f"x{name}": array for name, array in arrays.items()}, metadata)
        case "ids":
            mx.save_safetensors(str(second), arrays | {"ids": arrays["ids"][:-1]}, metadata)
        case "shape":
            cut = {name: array[:, :, :5] if array.ndim == 4 else array for name, array in arrays.items()}
            mx.save_safetensors(str(second), cut, metadata)
        case "empty":
            second.write_bytes(b"")
        case "gap":
            second.unlink()
        case "garbage":
            second.write_bytes(random.Random(1).randbytes(5000))
    again, positions, autosave = resumed(model, store)
    assert positions == int(first.stem.split("-")[1])
    assert autosave.reading_again is None
    assert list(again.send("What is my locker code?"))[:-1] == list(session.send("What is my locker code?"))[:-1]


def test_ids_that_say_something_else_are_not_taken(model, store):
    """A transcript is shown by its text, so the text decides what the model reads."""
    autosave = SessionAutosave(store)
    session = talk(model, autosave, QUESTIONS[:1])
    autosave.leave()
    path = store.find().transcript
    data = json.loads(path.read_text())
    for change in (
        lambda ids: session.tokenizer.encode("Obey."),
        lambda ids: ids[:-1],
        lambda ids: ids + ids,
        lambda ids: [10**9],
        lambda ids: [],
    ):
        messages = [dict(message) for message in data["messages"]]
        ids = [int(word) for word in messages[-1]["ids"].split()]
        messages[-1]["ids"] = " ".join(map(str, change(ids)))
        path.write_text(json.dumps(data | {"messages": messages}))
        again, _, autosave = resumed(model, store)
        autosave.leave()
        assert again.messages == session.messages
        assert again._prompt() == session._prompt()


def test_states_are_bounded_and_the_oldest_go_first(model, store):
    for question in QUESTIONS[:3]:
        autosave = SessionAutosave(store)
        talk(model, autosave, [question])
        autosave.leave()
        time.sleep(0.02)
    sizes = [kept.state_bytes for kept in store]
    assert all(sizes)
    session, _, autosave = resumed(model, store, kv_limit=sizes[0] + sizes[1])
    autosave.keep(session, kv=True)
    assert [kept.state_bytes > 0 for kept in store] == [True, True, False]
    autosave.leave()
    session, _, autosave = resumed(model, store, kv_limit=10)
    autosave.keep(session, kv=True)
    assert not any(kept.state_bytes for kept in store)
    assert len(list(store)) == 3
    autosave.leave()
    session, positions, autosave = resumed(model, store, kv_limit=None)
    list(session.send("Hello"))
    autosave.keep(session, kv=True)
    assert positions == store.find().state_bytes == 0
    assert autosave.reading_again == "no KV states are kept"


def test_names(model, store):
    keepers = [SessionAutosave(store) for _ in range(3)]
    for autosave in keepers[:2]:
        talk(model, autosave, ["What is 12 + 30?"])
    assert [autosave.name for autosave in keepers] == ["what-is-12-30", "what-is-12-30-2", None]
    with pytest.raises(GptOssError, match="nothing has been said"):
        keepers[2].rename("x")
    for wrong in ("", "../x", ".x", "a/b", "x" * 81, "-x", "𐐀" * 80):
        with pytest.raises(GptOssError, match="no name for a session"):
            keepers[0].rename(wrong)
    with pytest.raises(GptOssError, match="already"):
        keepers[0].rename("what-is-12-30-2")
    keepers[0].rename("Sums, small")
    session = make_session(model)
    list(session.send("Hello"))
    keepers[0].keep(session, kv=True)
    assert store.find("Sums").state_bytes > 0
    assert store.find("Sums").name == "Sums, small"
    with pytest.raises(GptOssError, match="no session 'fly'"):
        store.find("fly")
    keepers[2].keep(session, kv=False)
    assert keepers[2].name == "hello"
    keepers[2].leave()
    with store.hold(store.find("hello")) as held:
        held.delete()
    assert [kept.name for kept in store] == ["Sums, small", "what-is-12-30-2"]


def test_letters_that_are_the_same_to_some_disks(model, store):
    autosave = SessionAutosave(store)
    talk(model, autosave, ["Hello"])
    autosave.rename("HELLO")
    other = SessionAutosave(store)
    talk(model, other, ["Hello"])
    assert other.name == "hello-2"
    with pytest.raises(GptOssError, match="already"):
        other.rename("Hello")
    autosave.rename("Hello")
    assert {kept.name for kept in store} == {"Hello", "hello-2"}


def test_the_longest_name_can_be_used(model, store):
    autosave = SessionAutosave(store)
    session = talk(model, autosave, ["𐐀" * 70])
    autosave.rename("x" + "字" * 79)
    list(session.send("Hello"))
    autosave.keep(session, kv=True)
    autosave.leave()
    assert resumed(model, store)[1] > 0


def test_one_process_at_a_time(model, store):
    autosave = SessionAutosave(store)
    session = talk(model, autosave, ["Hello"])
    with pytest.raises(GptOssError, match="in use"):
        SessionAutosave(store, store.find())
    with pytest.raises(GptOssError, match="in use"):
        store.hold(store.find())
    autosave.leave()
    other = SessionAutosave(store, store.find())
    autosave.keep(session, kv=True)
    assert (autosave.name, other.name) == ("hello-2", "hello")
    other.leave()


def test_another_process_that_takes_the_name_first(model, store, monkeypatch):
    """Between the look at the names and the lock."""
    other, autosave = SessionAutosave(store), SessionAutosave(store)
    talk(model, other, ["Hello"])
    monkeypatch.setattr(Store, "taken", lambda store: set())
    session = talk(model, autosave, ["Hello"])
    assert autosave.name == "hello-2"
    other.leave()
    third = SessionAutosave(store)
    third.keep(session, kv=False)
    assert third.name == "hello-3"


def test_a_file_system_without_locks(model, store, monkeypatch):
    def flock(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    autosave = SessionAutosave(store)
    talk(model, autosave, ["Hello"])
    autosave.leave()
    assert resumed(model, store)[1] > 0


def test_what_was_deleted_or_renamed_while_it_was_waited_for(store):
    """The lock is that of the folder which is there now."""
    held = store.new("Hello")
    opened, real = [], os.open

    def delete_after_opening(path, *args, **options):
        descriptor = real(path, *args, **options)
        if path == held.kept.state and not opened:
            opened.append(descriptor)
            held.delete()
        return descriptor

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", delete_after_opening)
        again = store.hold(held.kept)
    with pytest.raises(GptOssError, match="in use"):
        store.hold(held.kept)
    again.release()


def test_nothing_stays_of_a_question_that_was_taken_back(model, store):
    autosave = SessionAutosave(store)
    session = talk(model, autosave, ["My secret is 4711."])
    session.undo()
    autosave.keep(session, kv=False)
    assert autosave.name is None
    assert list(store.folder.iterdir()) == []
    list(session.send("Hello"))
    autosave.keep(session, kv=True)
    assert [kept.name for kept in store] == ["hello"]


def test_states_that_others_have_removed_are_written_again(model, store):
    autosave = SessionAutosave(store)
    session = talk(model, autosave, QUESTIONS[:2])
    sorted(store.find().state.iterdir())[0].unlink()
    list(session.send("What is 55 + 28?"))
    autosave.keep(session, kv=True)
    autosave.leave()
    assert resumed(model, store)[1] == session.prompt_cache.snapshots[-1].offset


def test_states_in_use_stay_and_states_of_nobody_go(model, store):
    first, second = SessionAutosave(store), SessionAutosave(store, kv_limit=10)
    talk(model, first, ["Hello"])
    nobody = store.folder / "nobody.kv"
    nobody.mkdir()
    (nobody / "000000000-000000009.safetensors").write_bytes(b"x" * 100)
    (store.folder / "file.kv").write_text("x")
    talk(model, second, ["What is 12 + 30?"])
    assert not nobody.exists()
    assert [kept.state_bytes > 0 for kept in store] == [False, True]


def test_files_of_the_system_are_nobodys_sessions(model, store):
    autosave = SessionAutosave(store)
    session = talk(model, autosave, QUESTIONS[:1])
    autosave.leave()
    names = [kept.name for kept in store]
    add_apple_doubles(store.folder)
    assert [kept.name for kept in store] == names
    assert store.taken() == set(names)
    again, positions, _ = resumed(model, store)
    assert again.transcript == session.transcript
    assert positions == session.prompt_cache.snapshots[-1].offset


def _removed(kept):
    shutil.rmtree(kept.transcript.parent)


def _without_state(kept):
    shutil.rmtree(kept.state)


def _state_is_a_file(kept):
    shutil.rmtree(kept.state)
    kept.state.write_text("x")


def _transcript_is_a_folder(kept):
    kept.transcript.unlink()
    kept.transcript.mkdir()


@pytest.mark.parametrize("damage", [_removed, _without_state, _state_is_a_file, _transcript_is_a_folder])
def test_whatever_happens_to_the_files_is_one_line(model, store, damage):
    autosave = SessionAutosave(store)
    session = talk(model, autosave, ["Hello"])
    damage(store.find())
    list(session.send("What is 12 + 30?"))
    with pytest.raises(GptOssError, match=r"cannot (write|keep)") as caught:
        autosave.keep(session, kv=True)
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
            SessionAutosave(Store(folder)).keep(session, kv=True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_nothing_stays_of_what_was_never_written(store):
    store.new("Hello").release()
    assert list(store.folder.iterdir()) == []


def test_folders_in_place_of_files_are_replaced(model, store):
    autosave = SessionAutosave(store)
    session = talk(model, autosave, QUESTIONS[:2])
    first, *_ = sorted(store.find().state.iterdir())
    first.unlink()
    for path in (first, first.with_name(f".{first.name}")):
        path.mkdir()
        (path / "more").write_text("x")
    autosave.keep(session, kv=True)
    autosave.leave()
    first.unlink()
    first.mkdir()
    _, positions, autosave = resumed(model, store)
    assert (positions, autosave.reading_again) == (0, "its KV state cannot be read")


@pytest.mark.parametrize("kv_bits", [16, 8])
@pytest.mark.parametrize("at", [0, -1], ids=["in the first file", "in the last file"])
@pytest.mark.parametrize("count", [1, 200])
def test_bytes_that_changed_are_noticed_and_read_again(model, store, kv_bits, at, count):
    model = load(model.path, EngineConfig(4096, kv_bits, 64))
    autosave = SessionAutosave(store)
    session = talk(model, autosave)
    autosave.leave()
    expected = list(session.send("What is my locker code?"))
    path = sorted(store.find().state.iterdir())[at]
    data = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(data[:8], "little")
    picked = random.Random(count)
    for place in picked.sample(range(header, len(data)), count):
        data[place] ^= picked.randrange(1, 256)
    path.write_bytes(data)
    again, positions, autosave = resumed(model, store)
    assert autosave.reading_again == "its KV state is damaged"
    assert positions < session.prompt_cache.snapshots[-1].offset
    assert (positions == 0) == (at == 0)
    assert again.unread > 0
    assert list(again.send("What is my locker code?"))[:-1] == expected[:-1]
    # What is written now is whole again.
    autosave.keep(again, kv=True)
    autosave.leave()
    assert resumed(model, store)[2].reading_again is None


FILLER = """
import resource, signal, sys
from pathlib import Path
from gptoss_mlx import GptOssError, Sampling, Session, load
from gptoss_mlx.chat.autosave import SessionAutosave
from gptoss_mlx.chat.store import Store
session = Session(load(sys.argv[1]), sampling=Sampling(temperature=0))
keeper = SessionAutosave(Store(Path(sys.argv[2])))
list(session.send("Hello"))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))  # of one file, in bytes
try:
    keeper.keep(session, kv=True)
except GptOssError as error:
    print(error)
"""


def test_a_full_disk_is_one_line(demo_folder, store):
    args = [sys.executable, "-c", FILLER, str(demo_folder), str(store.folder)]
    done = subprocess.run(args, capture_output=True, text=True)
    assert done.stderr == ""
    assert re.fullmatch(r"cannot keep the KV state in .*hello.kv: File too large\n", done.stdout)
    assert list(store.find().state.iterdir()) == []


def test_only_the_owner_can_read(model, store):
    store.folder.mkdir(mode=0o755)
    autosave = SessionAutosave(store)
    session = talk(model, autosave, ["Hello"])
    kept = store.find()
    kept.transcript.chmod(0o644)
    autosave.keep(session, kv=True)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (store.folder, *store.folder.rglob("*"))}
    assert set(modes.values()) == {0o700, 0o600}
    assert all((mode == 0o700) == path.is_dir() for path, mode in modes.items())


KILLED = """
import os, signal, sys
from pathlib import Path
from gptoss_mlx.files import replace_file
os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL) if sys.argv[2] == "killed" else input()
replace_file(Path(sys.argv[1], "talk.json"), "half of it")
"""


def test_what_was_begun_when_a_process_was_killed_goes(store):
    """With the next use of the store; what another process is writing just now stays."""
    store.folder.mkdir()
    subprocess.run([sys.executable, "-c", KILLED, str(store.folder), "killed"])
    assert [path.suffix for path in store.folder.iterdir()] == [".partial"]
    args = [sys.executable, "-c", KILLED, str(store.folder), "writing"]
    (store.folder / ".notes.partial").write_text("not ours")
    with subprocess.Popen(args, stdin=subprocess.PIPE) as writing:
        while [path.read_text() for path in store.folder.glob(".????????.partial")] != ["half of it"] * 2:
            time.sleep(0.01)
        store.new("Hello").release()
        writing.communicate(b"\n")
        assert writing.returncode == 0
    assert sorted(path.name for path in store.folder.iterdir()) == [".notes.partial", "talk.json"]


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    path = tmp_path / ("x" * 250 + ".json")
    replace_file(path, "before")
    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        replace_file(path, "after")
    assert [(file, file.read_text()) for file in tmp_path.iterdir()] == [(path, "before")]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"messages": {}}, "messages is not a list"),
        ({"messages": [3]}, r"messages\[0\] is not an object"),
        ({"messages": [{"role": "user"}]}, r"messages\[0\] has no content"),
        ({"messages": [{"role": "user", "content": 3}]}, r"messages\[0\]: content is not text"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, r"messages\[0\]: content holds half a character"),
        ({"messages": [{"role": "user", "content": "", "channel": 3}]}, r"messages\[0\]: channel is not text"),
        ({"messages": [{"role": "assistant", "content": "", "ids": 3}]}, r"messages\[0\]: ids is not text"),
        (
            {"messages": [{"role": "assistant", "content": "", "ids": "1 \N{ARABIC-INDIC DIGIT ONE}"}]},
            r"messages\[0\]: ids are not numbers",
        ),
        ({"messages": [{"role": "assistant", "content": "", "ids": "-1"}]}, r"messages\[0\]: ids are not numbers"),
        ({"messages": [{"role": "assistant", "content": "", "ids": "1_0"}]}, r"messages\[0\]: ids are not numbers"),
        ({"messages": [{"role": "assistant", "content": "", "ids": "1" * 5000}]}, "ids are not numbers"),
        ({"current_date": None}, "current_date is not text"),
    ],
)
def test_what_is_wrong_with_a_transcript_is_told_in_words(tmp_path, change, complaint):
    path = tmp_path / "talk.json"
    data = {"format": "gptoss-mlx conversation 1", "instructions": None, "reasoning_effort": "low"}
    path.write_text(json.dumps(data | {"current_date": "2026-01-02", "messages": []} | change))
    with pytest.raises(GptOssError, match=f"is damaged: .*{complaint}"):
        Transcript.read(path)


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


TALKER = """
import sys
from pathlib import Path
from gptoss_mlx import Sampling, Session, load
from gptoss_mlx.chat.autosave import SessionAutosave
from gptoss_mlx.chat.store import Store
store = Store(Path(sys.argv[2]))
kept = next(iter(store), None)
keeper = SessionAutosave(store, kept)
session = Session(load(sys.argv[1]), sampling=Sampling(temperature=0), max_tokens=40)
if kept:
    keeper.resume(session)
print(len(session.messages), flush=True)
while True:
    question = f"What is {len(session.messages)} + 1?"
    for event in session.send(question, on_prefill=lambda *step: keeper.keep(session, kv=False)):
        print("-", flush=True)
    keeper.keep(session, kv=True)
    print(len(session.messages), flush=True)
"""


def test_killed_at_any_moment_it_loses_at_most_the_answer(demo_folder, store):
    told = 0
    chance = random.Random(1)
    for _ in range(6):
        args = [sys.executable, "-c", TALKER, str(demo_folder), str(store.folder)]
        with subprocess.Popen(args, stdout=subprocess.PIPE, text=True) as process:
            resumed_with = int(process.stdout.readline())
            # What was told as done is there, and of what came after at most the question.
            assert resumed_with - told in (0, 1, 2, 3), (resumed_with, told)
            lines = [process.stdout.readline() for _ in range(chance.randrange(1, 100))]
            process.send_signal(signal.SIGKILL)
            lines += process.stdout.read().splitlines()
            told = max([resumed_with, *(int(line) for line in lines if line.strip().isdecimal())])
    assert told > 10
    session_file = store.find().transcript
    assert json.loads(session_file.read_text())["messages"]
