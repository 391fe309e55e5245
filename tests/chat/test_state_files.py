"""Saved KV caches: what a turn writes, what is resumed from it, and the cost of a damaged file."""

import functools
import os
import random
import re
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import pytest

import zygote
from chat.conversing import make_session
from chat.storing import QUESTIONS, resumed, talk
from gptoss_mlx import load
from gptoss_mlx.chat import state_files
from gptoss_mlx.chat.autosave import SessionAutosave
from gptoss_mlx.chat.store import Store
from gptoss_mlx.engine import prompt_cache
from gptoss_mlx.engine.generate import Model
from gptoss_mlx.harmony.messages import Message
from gptoss_mlx.harmony.render import encode, render_message
from gptoss_mlx.memory.plan import EngineConfig

QUESTION = "What is my locker code?"


@dataclass(frozen=True)
class Saved:
    """A conversation that was saved, in a store that its tests copy, and how it goes on after `QUESTION`."""

    model: Model
    folder: Path
    positions: int
    events: list

    def copied_to(self, store):
        shutil.copytree(self.folder, store.folder)
        return store


@pytest.fixture(scope="module")
def saved(demo_folder, tmp_path_factory):
    @functools.cache
    def saved(kv_bits):
        model, store = load(demo_folder, EngineConfig(4096, kv_bits, 64)), Store(tmp_path_factory.mktemp("sessions"))
        autosave = SessionAutosave(store)
        session = talk(model, autosave)
        autosave.leave()
        positions = session.prompt_cache.snapshots[-1].offset
        return Saved(model, store.folder, positions, list(session.send(QUESTION))[:-1])

    return saved


def message_length(session, text):
    return len(encode(render_message(Message("user", text)), session.tokenizer))


def test_a_session_goes_on_as_if_it_had_never_ended(model, store):
    autosave = SessionAutosave(store)
    session = talk(model, autosave, reasoning_effort="medium")
    while session.prefill_ahead(100):
        pass
    autosave.save(session, kv=True)
    autosave.leave()
    again, positions, _ = resumed(model, store)
    assert again.transcript == session.transcript
    assert positions == session.context_used
    ours, theirs = list(session.send(QUESTION)), list(again.send(QUESTION))
    assert ours[:-1] == theirs[:-1]
    # Nothing but the message: its beginning was read ahead.
    opening = message_length(session, "") - 1
    assert theirs[-1].prefilled == ours[-1].prefilled == message_length(session, QUESTION) - opening + 2
    state = zip(session.prompt_cache.cache.arrays(), again.prompt_cache.cache.arrays(), strict=True)
    for left, right in state:
        end = session.context_used
        assert mx.array_equal(left[:, :, :end], right[:, :, :end])


@pytest.mark.parametrize("kv_bits", [8, 16])
def test_every_form_of_keys_and_values_is_saved(saved, store, kv_bits):
    saved = saved(kv_bits)
    again, positions, _ = resumed(saved.model, saved.copied_to(store))
    assert positions == saved.positions > 200
    assert list(again.send(QUESTION))[:-1] == saved.events


def test_a_turn_writes_only_what_is_new(model, store, monkeypatch):
    monkeypatch.setattr(state_files, "KV_CHUNK", 100)
    autosave, session = SessionAutosave(store), make_session(model)
    before: dict[str, float] = {}
    for question in QUESTIONS:
        list(session.send(question))
        autosave.save(session, kv=True)
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
    session = talk(model, autosave, QUESTIONS[:3])
    session.undo()
    session.undo()
    list(session.send("What is 55 + 28?"))
    autosave.save(session, kv=True)
    autosave.leave()
    again, positions, _ = resumed(model, store)
    assert again.messages == session.messages
    assert positions == session.prompt_cache.snapshots[-1].offset
    assert list(again.send("Hello"))[:-1] == list(session.send("Hello"))[:-1]


def test_without_the_state_it_is_prefilled_again(saved, store):
    saved = saved(16)
    saved.copied_to(store)
    with store.lock(store.find()) as lock:
        lock.remove_state()
    again, positions, autosave = resumed(saved.model, store)
    assert (positions, autosave.reread_reason) == (0, "its KV cache is gone")
    events = list(again.send(QUESTION))
    assert events[:-1] == saved.events
    assert events[-1].prefilled > 200


def test_the_state_of_another_model_is_not_taken(model, saved, store):
    saved(16).copied_to(store)
    session, positions, autosave = resumed(load(model.path, EngineConfig(4096, 8, 64)), store)
    assert (positions, autosave.reread_reason) == (0, "its KV cache is of another model or recipe")
    list(session.send("Hello"))
    autosave.save(session, kv=True)
    autosave.leave()
    # From here on the state is that of the other one.
    _, positions, autosave = resumed(model, store)
    assert positions == 0
    autosave.leave()
    assert resumed(load(model.path, EngineConfig(4096, 8, 64)), store)[1] == session.prompt_cache.snapshots[-1].offset


@pytest.mark.parametrize("damage", ["truncated", "header", "name", "ids", "shape", "empty", "gap", "garbage"])
def test_a_damaged_state_is_as_good_as_none(saved, store, damage):
    saved = saved(16)
    saved.copied_to(store)
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
    again, positions, autosave = resumed(saved.model, store)
    assert positions == int(first.stem.split("-")[1])
    assert autosave.reread_reason is None
    assert list(again.send(QUESTION))[:-1] == saved.events


def test_states_that_others_have_removed_are_written_again(model, store):
    autosave = SessionAutosave(store)
    session = talk(model, autosave, QUESTIONS[:2])
    sorted(store.find().state.iterdir())[0].unlink()
    list(session.send("What is 55 + 28?"))
    autosave.save(session, kv=True)
    autosave.leave()
    assert resumed(model, store)[1] == session.prompt_cache.snapshots[-1].offset


def test_folders_in_place_of_files_are_replaced(model, store):
    autosave = SessionAutosave(store)
    session = talk(model, autosave, QUESTIONS[:2])
    first, *_ = sorted(store.find().state.iterdir())
    first.unlink()
    for path in (first, first.with_name(f".{first.name}")):
        path.mkdir()
        (path / "more").write_text("x")
    autosave.save(session, kv=True)
    autosave.leave()
    first.unlink()
    first.mkdir()
    _, positions, autosave = resumed(model, store)
    assert (positions, autosave.reread_reason) == (0, "its KV cache cannot be read")


CHANGES = [(count, at, kv_bits) for count in (1, 200) for at in (0, -1) for kv_bits in (16, 8)]
OFTEN = [(1, 0, 16), (1, -1, 8), (200, -1, 16)]


@pytest.mark.parametrize(
    ("count", "at", "kv_bits"),
    [change if change in OFTEN else pytest.param(*change, marks=pytest.mark.slow) for change in CHANGES],
)
def test_bytes_that_changed_are_noticed_and_prefilled_again(saved, store, kv_bits, at, count):
    saved = saved(kv_bits)
    saved.copied_to(store)
    path = sorted(store.find().state.iterdir())[at]
    data = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(data[:8], "little")
    picked = random.Random(count)
    for place in picked.sample(range(header, len(data)), count):
        data[place] ^= picked.randrange(1, 256)
    path.write_bytes(data)
    again, positions, autosave = resumed(saved.model, store)
    assert autosave.reread_reason == "its KV cache is damaged"
    assert positions < saved.positions
    assert (positions == 0) == (at == 0)
    assert again.unread > 0
    assert list(again.send(QUESTION))[:-1] == saved.events
    # What is written now is whole again.
    autosave.save(again, kv=True)
    autosave.leave()
    assert resumed(saved.model, store)[2].reread_reason is None


def test_what_is_saved_is_known_without_reading_it(saved, store, monkeypatch):
    saved = saved(16)
    saved.copied_to(store)
    session, autosave = make_session(saved.model), SessionAutosave(store, store.find())
    with monkeypatch.context() as patched:
        patched.setattr(state_files, "_checksum", None)
        autosave.restore(session)
    files = {path: path.stat().st_mtime_ns for path in store.find().state.iterdir()}
    ids = session.ids
    assert autosave.state.cached_of(ids) == saved.positions
    # Of a part, what ends in a snapshot of it.
    part = autosave.state.cached_of(ids[: saved.positions - 1])
    assert 0 < part < saved.positions
    assert autosave.state.load(session.prompt_cache, ids[: saved.positions - 1]) == part == session.context_used
    autosave.restore(session)
    assert autosave.state.load(session.prompt_cache, ids) == saved.positions
    assert list(session.send(QUESTION))[:-1] == saved.events
    autosave.save(session, kv=True)
    assert files.items() < {path: path.stat().st_mtime_ns for path in store.find().state.iterdir()}.items()


def test_no_more_snapshots_are_loaded_than_are_kept(model, store, monkeypatch):
    autosave = SessionAutosave(store)
    session = talk(model, autosave)
    autosave.leave()
    for module in (state_files, prompt_cache):
        monkeypatch.setattr(module, "MAX_SNAPSHOTS", 3)
    again, positions, _ = resumed(model, store)
    offsets = [snapshot.offset for snapshot in session.prompt_cache.snapshots]
    assert len(offsets) > 3
    assert [each.offset for each in again.prompt_cache.snapshots] == [offsets[0], *offsets[-2:]]
    assert positions == offsets[-1]


def test_a_cache_that_an_error_has_emptied_leaves_what_is_saved(saved, store):
    saved = saved(16)
    saved.copied_to(store)
    session, _, autosave = resumed(saved.model, store)
    session.prompt_cache.clear()
    autosave.save(session, kv=True)
    autosave.leave()
    assert resumed(saved.model, store)[1] == saved.positions


KILLED = """
import os, signal, sys
from pathlib import Path
from gptoss_mlx import Sampling, Session, load
from gptoss_mlx.chat import state_files
from gptoss_mlx.chat.autosave import SessionAutosave
from gptoss_mlx.chat.store import Store
from gptoss_mlx.demo import FUNCTIONS
state_files.KV_CHUNK, at, replace = 10, int(sys.argv[3]), os.replace
store = Store(Path(sys.argv[2]))
autosave = SessionAutosave(store, store.find())
session = Session(load(sys.argv[1]), functions=FUNCTIONS, sampling=Sampling(temperature=0))
autosave.resume(session)
session.undo()
session.undo()
list(session.send("What is 55 + 28?"))
def count(*paths):
    global at
    at -= 1
    if at < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*paths)
os.replace = count
autosave.save(session, kv=True)
"""


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_process_that_is_killed_while_it_saves_leaves_what_can_be_used(model, store, demo_folder, at):
    """Before the transcript, a first chunk or a second one has its place."""
    autosave = SessionAutosave(store)
    before = talk(model, autosave)
    autosave.leave()
    command = ["-c", KILLED, str(demo_folder), str(store.folder), str(at)]
    assert zygote.shared().run(command, "", os.environ, timeout=100).returncode == -signal.SIGKILL
    again, positions, autosave = resumed(model, store)
    assert (again.messages == before.messages) == (at == 0)
    assert autosave.reread_reason is None
    assert 0 < positions <= before.prompt_cache.snapshots[-1].offset
    anew = make_session(model)
    anew.restore(again.transcript)
    assert list(again.send(QUESTION))[:-1] == list(anew.send(QUESTION))[:-1]
    autosave.save(again, kv=True)
    autosave.leave()
    assert resumed(model, store)[1] == again.prompt_cache.snapshots[-1].offset


FILLER = """
import resource, signal, sys
from pathlib import Path
from gptoss_mlx import GptOssError, Sampling, Session, load
from gptoss_mlx.chat.autosave import SessionAutosave
from gptoss_mlx.chat.store import Store
session = Session(load(sys.argv[1]), sampling=Sampling(temperature=0))
autosave = SessionAutosave(Store(Path(sys.argv[2])))
list(session.send("Hello"))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))  # of one file, in bytes
try:
    autosave.save(session, kv=True)
except GptOssError as error:
    print(error)
"""


def test_a_full_disk_is_one_line(demo_folder, store):
    done = zygote.shared().run(["-c", FILLER, str(demo_folder), str(store.folder)], "", os.environ, timeout=100)
    assert done.stderr == ""
    assert re.fullmatch(r"cannot save the KV cache in .*hello.kv: File too large\n", done.stdout)
    assert list(store.find().state.iterdir()) == []
