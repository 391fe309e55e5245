"""The session on the demo model: turns, tools, interruption, failure, saving."""

import json

import pytest

from gptoss_mlx import GptOssError, Sampling, Session
from gptoss_mlx.chat import session as chat_session
from gptoss_mlx.chat.transcript import Transcript
from gptoss_mlx.chat.turn import ToolResult, TurnStats
from gptoss_mlx.demo import FUNCTIONS
from gptoss_mlx.harmony.messages import Message, Tool
from gptoss_mlx.harmony.parse import Content, Reasoning, Stop, ToolCall
from gptoss_mlx.tools.toolbox import Function, Toolbox


@pytest.fixture
def session(model):
    return Session(model, sampling=Sampling(temperature=0), max_tokens=300, current_date="2026-01-02")


def text_of(events, kind=Content):
    return "".join(event.text for event in events if isinstance(event, kind))


def test_a_turn(session):
    events = list(session.send("What is 12 + 30?"))
    assert text_of(events) == "12 + 30 = 42"
    assert "2+0+0=02" in text_of(events, Reasoning)
    assert events[-2] == Stop("return")
    assert isinstance(events[-1], TurnStats)
    assert events[-1].context_used == session.context_used > 0
    assert [message.channel for message in session.messages] == [None, "analysis", "final"]


def test_reasoning_effort_decides_its_length(session):
    lengths = []
    for effort in ("low", "medium", "high"):
        session.reset()
        session.set_reasoning_effort(effort)
        lengths.append(len(text_of(session.send("What is 123 + 456?"), Reasoning)))
    assert lengths[0] < lengths[1] < lengths[2]
    with pytest.raises(GptOssError, match="extreme"):
        session.set_reasoning_effort("extreme")


def test_turns_remember(session):
    list(session.send("My locker code is 4711."))
    list(session.send("Hello"))
    assert text_of(session.send("What is my locker code?")) == "Your locker code is 4711."


def test_the_date_is_that_of_the_start(model, monkeypatch):
    """A prompt that changes at midnight would have to be read again."""
    session = Session(model, sampling=Sampling(temperature=0), max_tokens=5)
    prompts = []

    def read_steps(ids):
        prompts.append(ids)
        yield 0, len(ids)

    monkeypatch.setattr(session.prompt_cache, "read_steps", read_steps)
    monkeypatch.setattr(session.prompt_cache, "snapshot", lambda: None)
    monkeypatch.setattr(session.prompt_cache, "decode", lambda *args, **more: (id_ for id_ in ()))
    with monkeypatch.context() as patch:
        list(session.send("Hello"))
        patch.setattr(chat_session.datetime, "date", None)
        list(session.send("Hello"))
    assert len(prompts) == 2


def test_its_repr_says_how_much_of_the_context_is_used(session):
    assert repr(session) == "<Session with model: 0 messages, 0 of 131,072 tokens>"
    list(session.send("Hello"))
    assert repr(session).startswith(f"<Session with model: 3 messages, {session.context_used} of ")


def test_reset_forgets(session):
    list(session.send("Hello"))
    session.reset()
    assert session.messages == ()


def test_the_second_turn_equals_a_fresh_session_with_the_same_history(model, session, tmp_path):
    list(session.send("My locker code is 4711."))
    session.transcript.write(tmp_path / "talk.json")
    fresh = Session(model, sampling=Sampling(temperature=0), max_tokens=300)
    fresh.restore(Transcript.read(tmp_path / "talk.json"))
    assert fresh.messages == session.messages
    question = "What is my locker code?"
    ours, theirs = list(session.send(question)), list(fresh.send(question))
    assert ours[:-1] == theirs[:-1]


def test_a_function_is_called_and_its_result_used(model):
    session = Session(model, functions=FUNCTIONS, sampling=Sampling(temperature=0), max_tokens=300)
    events = list(session.send("What is the weather in Bermi?"))
    (call,) = [event for event in events if isinstance(event, ToolCall)]
    assert (call.name, json.loads(call.arguments)) == ("get_weather", {"location": "Bermi"})
    (result,) = [event for event in events if isinstance(event, ToolResult)]
    outcome = json.loads(result.output)
    assert text_of(events) == f"It is {outcome['temperature']} degrees and {outcome['sky']} in Bermi."
    assert [message.role for message in session.messages].count("functions.get_weather") == 1
    # In the loop, only what the function answered was read again.
    assert events[-1].prefilled < events[-1].context_used


def test_what_goes_wrong_in_a_function_is_told_to_the_model():
    def fail(x):
        raise ValueError("no such x")

    toolbox = Toolbox([Function(Tool("f"), fail)])
    for name, arguments, complaint in [
        ("g", "{}", "no function g"),
        ("f", "{", "not JSON"),
        ("f", "[]", "not a JSON object"),
        ("f", "{}", "TypeError"),
        ("f", '{"x": 1}', "ValueError: no such x"),
    ]:
        assert complaint in json.loads(toolbox.run(ToolCall(name, arguments)))["error"]


def test_an_interrupted_answer_stays_as_far_as_it_came(session):
    events = session.send("What is gptoss-mlx?")
    said = ""
    for event in events:
        if isinstance(event, Content):
            said += event.text
            if len(said) > 10:
                break
    events.close()
    assert session.messages[1:] == (Message("assistant", said, channel="final"),)
    assert text_of(session.send("What is 12 + 30?")) == "12 + 30 = 42"


def test_interrupted_while_thinking_nothing_stays_but_the_question(session):
    events = session.send("What is 12 + 30?")
    next(event for event in events if isinstance(event, Reasoning))
    events.close()
    assert session.messages == (Message("user", "What is 12 + 30?"),)


def test_a_failed_turn_leaves_the_conversation_as_it_was(session, monkeypatch):
    list(session.send("Hello"))
    before = session.messages
    with monkeypatch.context() as patch:
        patch.setattr(session.model.network, "logits", lambda hidden: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            list(session.send("What is 12 + 30?"))
    assert session.messages == before
    assert text_of(session.send("What is 12 + 30?")) == "12 + 30 = 42"


def test_max_tokens_is_told(model):
    session = Session(model, sampling=Sampling(temperature=0), max_tokens=5)
    events = list(session.send("What is 12 + 30?"))
    assert Stop("none") in events


@pytest.fixture(scope="module")
def said_hello(model):
    session = Session(model, sampling=Sampling(temperature=0), max_tokens=300, current_date="2026-01-02")
    list(session.send("Hello"))
    return session.transcript


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda data: "{", "not JSON"),
        (lambda data: "[]", "not a saved conversation"),
        (lambda data: json.dumps(data | {"format": "other"}), "not a saved conversation"),
        (lambda data: json.dumps(data | {"messages": [3]}), "damaged"),
        (lambda data: json.dumps(data | {"messages": [{"role": "user"}]}), "damaged"),
        (lambda data: json.dumps(data | {"messages": [{"role": "user", "content": 3}]}), "damaged"),
        (lambda data: json.dumps(data | {"reasoning_effort": "extreme"}), "extreme"),
        (lambda data: json.dumps(data | {"messages": [{"role": "assistant", "content": "", "ids": "1 x"}]}), "damaged"),
        (lambda data: json.dumps(data | {"instructions": 3}), "damaged"),
    ],
)
def test_a_damaged_file_loses_nothing(session, said_hello, tmp_path, change, complaint):
    session.restore(said_hello)
    path = tmp_path / "talk.json"
    session.transcript.write(path)
    path.write_text(change(json.loads(path.read_text())))
    before = session.transcript
    with pytest.raises(GptOssError, match=complaint):
        session.restore(Transcript.read(path))
    assert session.transcript == before


def test_files_that_cannot_be_written(session, tmp_path):
    with pytest.raises(GptOssError, match="cannot write"):
        session.transcript.write(tmp_path / "nothing" / "talk.json")
