"""Sessions on disk: what is kept, what is resumed from it, and what a kill or a damaged file costs."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import mlx.core as mx
import pytest

import gptoss_mlx
from gptoss_mlx import GptOssError, Sampling, Session, load
from gptoss_mlx.budget import Settings
from gptoss_mlx.chat import state_files
from gptoss_mlx.chat.keeper import Keeper
from gptoss_mlx.chat.store import Store, remove_state, sessions_folder
from gptoss_mlx.demo import FUNCTIONS
from gptoss_mlx.harmony.messages import Message
from gptoss_mlx.harmony.render import encode, render_message

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


def talk(model, keeper, questions=QUESTIONS):
    session = make_session(model)
    for question in questions:
        list(session.send(question))
        keeper.keep(session, kv=True)
    return session


def resumed(model, store, **options):
    keeper, session = Keeper(store, store.find(), **options), make_session(model)
    return session, keeper.resume(session), keeper


def message_length(session, text):
    return len(encode(render_message(Message("user", text)), session.tokenizer))


def test_a_session_goes_on_as_if_it_had_never_ended(model, store):
    keeper = Keeper(store)
    session = talk(model, keeper)
    while session.settle(100):
        pass
    keeper.keep(session, kv=True)
    keeper.leave()
    again, positions, _ = resumed(model, store)
    assert again.transcript == session.transcript
    assert positions == session.context_used
    question = "What is my locker code?"
    ours, theirs = list(session.send(question)), list(again.send(question))
    assert ours[:-1] == theirs[:-1]
    # Nothing but the message: its beginning was read ahead.
    opening = message_length(session, "") - 1
    assert theirs[-1].prefilled == ours[-1].prefilled == message_length(session, question) - opening + 2
    state = zip(session.timeline.cache.arrays(), again.timeline.cache.arrays(), strict=True)
    for left, right in state:
        end = session.context_used
        assert mx.array_equal(left[:, :, :end], right[:, :, :end])


@pytest.mark.parametrize("kv_bits", [8, 16])
def test_every_form_of_keys_and_values_is_kept(demo_folder, store, kv_bits):
    model = load(demo_folder, Settings(4096, kv_bits, 64))
    keeper = Keeper(store)
    session = talk(model, keeper)
    keeper.leave()
    again, positions, _ = resumed(model, store)
    assert positions == session.timeline.marks[-1].offset > 200
    assert list(session.send("What is my locker code?"))[:-1] == list(again.send("What is my locker code?"))[:-1]


def test_a_turn_writes_only_what_is_new(model, store, monkeypatch):
    monkeypatch.setattr(state_files, "STRETCH", 100)
    keeper, session = Keeper(store), make_session(model)
    before: dict[str, float] = {}
    for question in QUESTIONS:
        list(session.send(question))
        keeper.keep(session, kv=True)
        files = {path.name: path.stat().st_mtime_ns for path in store.find().state.iterdir()}
        assert before.items() <= files.items()
        assert len(files) > len(before)
        before = files
    ends = [tuple(map(int, name.removesuffix(".safetensors").split("-"))) for name in sorted(before)]
    assert [start for start, _ in ends] == [0, *[end for _, end in ends[:-1]]]
    assert ends[-1][1] == session.timeline.marks[-1].offset
    keeper.leave()
    assert resumed(model, store)[1] == ends[-1][1]


def test_what_was_taken_back_is_gone_from_the_disk(model, store):
    keeper = Keeper(store)
    session = talk(model, keeper)
    session.undo()
    session.undo()
    list(session.send("What is 55 + 28?"))
    keeper.keep(session, kv=True)
    keeper.leave()
    again, positions, _ = resumed(model, store)
    assert again.messages == session.messages
    assert positions == session.timeline.marks[-1].offset
    assert list(again.send("Hello"))[:-1] == list(session.send("Hello"))[:-1]


def test_without_the_state_it_is_read_again(model, store):
    keeper = Keeper(store)
    session = talk(model, keeper)
    keeper.leave()
    expected = list(session.send("What is my locker code?"))
    remove_state(store.find().state)
    again, positions, _ = resumed(model, store)
    assert positions == 0
    events = list(again.send("What is my locker code?"))
    assert events[:-1] == expected[:-1]
    assert events[-1].prefilled > 200


def test_the_state_of_another_model_is_not_taken(model, store):
    keeper = Keeper(store)
    talk(model, keeper)
    keeper.leave()
    session, positions, keeper = resumed(load(model.path, Settings(4096, 8, 64)), store)
    assert positions == 0
    list(session.send("Hello"))
    keeper.keep(session, kv=True)
    keeper.leave()
    # From here on the state is that of the other one.
    _, positions, keeper = resumed(model, store)
    assert positions == 0
    keeper.leave()
    assert resumed(load(model.path, Settings(4096, 8, 64)), store)[1] == session.timeline.marks[-1].offset


@pytest.mark.parametrize("damage", ["truncated", "header", "name", "ids", "shape", "empty", "gap", "garbage"])
def test_a_damaged_state_is_as_good_as_none(model, store, damage):
    keeper = Keeper(store)
    session = talk(model, keeper)
    keeper.leave()
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
    again, positions, _ = resumed(model, store)
    assert positions == int(first.stem.split("-")[1])
    assert list(again.send("What is my locker code?"))[:-1] == list(session.send("What is my locker code?"))[:-1]


def test_ids_that_say_something_else_are_not_taken(model, store):
    """A transcript is shown by its text, so the text decides what the model reads."""
    keeper = Keeper(store)
    session = talk(model, keeper, QUESTIONS[:1])
    keeper.leave()
    path = store.find().transcript
    data = json.loads(path.read_text())
    for change in (
        lambda ids: session.tokenizer.encode("Obey."),
        lambda ids: ids[:-1],
        lambda ids: ids + ids,
        lambda ids: [10**9],
        lambda ids: [-1],
        lambda ids: [],
    ):
        messages = [dict(message) for message in data["messages"]]
        ids = [int(word) for word in messages[-1]["ids"].split()]
        messages[-1]["ids"] = " ".join(map(str, change(ids)))
        path.write_text(json.dumps(data | {"messages": messages}))
        again, _, keeper = resumed(model, store)
        keeper.leave()
        assert again.messages == session.messages
        assert again._prompt() == session._prompt()


def test_states_are_bounded_and_the_oldest_go_first(model, store):
    for question in QUESTIONS[:3]:
        keeper = Keeper(store)
        talk(model, keeper, [question])
        keeper.leave()
        time.sleep(0.02)
    sizes = [kept.state_bytes for kept in store]
    assert all(sizes)
    session, _, keeper = resumed(model, store, kv_limit=sizes[0] + sizes[1])
    keeper.keep(session, kv=True)
    assert [kept.state_bytes > 0 for kept in store] == [True, True, False]
    keeper.leave()
    session, _, keeper = resumed(model, store, kv_limit=10)
    keeper.keep(session, kv=True)
    assert not any(kept.state_bytes for kept in store)
    assert len(list(store)) == 3
    keeper.leave()
    session, positions, keeper = resumed(model, store, kv_limit=None)
    list(session.send("Hello"))
    keeper.keep(session, kv=True)
    assert positions == store.find().state_bytes == 0


def test_names(model, store):
    keepers = [Keeper(store) for _ in range(3)]
    for keeper in keepers[:2]:
        talk(model, keeper, ["What is 12 + 30?"])
    assert [keeper.name for keeper in keepers] == ["what-is-12-30", "what-is-12-30-2", None]
    with pytest.raises(GptOssError, match="nothing has been said"):
        keepers[2].rename("x")
    for wrong in ("", "../x", ".x", "a/b", "x" * 81, "-x"):
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
    store.delete(store.find("hello"))
    assert [kept.name for kept in store] == ["Sums, small", "what-is-12-30-2"]


def test_one_process_at_a_time(model, store):
    keeper = Keeper(store)
    talk(model, keeper, ["Hello"])
    with pytest.raises(GptOssError, match="in use"):
        Keeper(store, store.find())
    keeper.leave()
    Keeper(store, store.find()).leave()


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
from gptoss_mlx.chat.keeper import Keeper
from gptoss_mlx.chat.store import Store
store = Store(Path(sys.argv[2]))
kept = next(iter(store), None)
keeper, session = Keeper(store, kept), Session(load(sys.argv[1]), sampling=Sampling(temperature=0), max_tokens=40)
if kept:
    keeper.resume(session)
print(len(session.messages), flush=True)
while True:
    question = f"What is {len(session.messages)} + 1?"
    list(session.send(question, on_prefill=lambda *step: keeper.keep(session, kv=False)))
    keeper.keep(session, kv=True)
    print(len(session.messages), flush=True)
"""


def test_killed_at_any_moment_it_loses_at_most_the_answer(demo_folder, store):
    told = 0
    chance = random.Random(1)
    for _ in range(8):
        args = [sys.executable, "-c", TALKER, str(demo_folder), str(store.folder)]
        with subprocess.Popen(args, stdout=subprocess.PIPE, text=True) as process:
            resumed_with = int(process.stdout.readline())
            # What was told as done is there, and of what came after at most the question.
            assert resumed_with - told in (0, 1, 2, 3), (resumed_with, told)
            time.sleep(chance.uniform(0.01, 0.3))
            process.send_signal(signal.SIGKILL)
            told = int(([str(resumed_with), *process.stdout.read().split()])[-1])
    assert told > 10
    session_file = store.find().transcript
    assert json.loads(session_file.read_text())["messages"]
