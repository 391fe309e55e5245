"""Transcripts on disk: what is refused, where they are, and what a kill costs."""

import json
import os
import random
import time

import pytest

import zygote
from chat.storing import QUESTIONS, resumed, talk
from gptoss_mlx import GptOssError
from gptoss_mlx.chat.autosave import SessionAutosave
from gptoss_mlx.chat.transcript import Transcript
from gptoss_mlx.files import replace_file


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
    zygote.shared().run(["-c", KILLED, str(store.folder), "killed"], "", os.environ, timeout=100)
    assert [path.suffix for path in store.folder.iterdir()] == [".partial"]
    (store.folder / ".notes.partial").write_text("not ours")
    writing = zygote.shared().open(["-c", KILLED, str(store.folder), "writing"], os.environ)
    while [path.read_text() for path in store.folder.glob(".????????.partial")] != ["half of it"] * 2:
        time.sleep(0.01)
    store.new("Hello").release()
    writing.communicate("\n")
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


TALKER = """
import sys
from pathlib import Path
from gptoss_mlx import Sampling, Session, load
from gptoss_mlx.chat.autosave import SessionAutosave
from gptoss_mlx.chat.store import Store
store = Store(Path(sys.argv[2]))
entry = next(iter(store), None)
autosave = SessionAutosave(store, entry)
session = Session(load(sys.argv[1]), sampling=Sampling(temperature=0), max_tokens=40)
if entry:
    autosave.resume(session)
print(len(session.messages), flush=True)
while True:
    question = f"What is {len(session.messages)} + 1?"
    for event in session.send(question, on_prefill=lambda *step: autosave.save(session, kv=False)):
        print("-", flush=True)
    autosave.save(session, kv=True)
    print(len(session.messages), flush=True)
"""


MOMENTS = random.Random(1)


@pytest.mark.parametrize(
    "moments", [[170, 75], pytest.param([MOMENTS.randrange(1, 100) for _ in range(12)], marks=pytest.mark.slow)]
)
def test_killed_at_any_moment_it_loses_at_most_the_answer(demo_folder, store, moments):
    """`moments`: the line of output after which a process is killed."""
    told = 0
    for moment in moments:
        process = zygote.shared().open(["-c", TALKER, str(demo_folder), str(store.folder)], os.environ)
        resumed_with = int(process.stdout.readline())
        # What was told as done is there, and of what came after at most the question.
        assert resumed_with - told in (0, 1, 2, 3), (resumed_with, told)
        lines = [process.stdout.readline() for _ in range(moment)]
        process.kill()
        lines += process.communicate()[0].splitlines()
        told = max([resumed_with, *(int(line) for line in lines if line.strip().isdecimal())])
    assert told > 10
    session_file = store.find().transcript
    assert json.loads(session_file.read_text())["messages"]
