"""What is written for a model that does not answer as it should, and what of its words reaches the conversation."""

import pytest

from chat.conversing import CALL, OPENING, answer, make_session, turn
from gptoss_mlx.chat import answer as chat_answer
from gptoss_mlx.chat.turn import Thought, ToolResult
from gptoss_mlx.harmony.messages import Message, Tool
from gptoss_mlx.harmony.parse import Preamble, Reasoning
from gptoss_mlx.tools.toolbox import Function


def test_without_reasoning_the_answer_comes_at_once(model):
    session = make_session(model, functions=(), reasoning_effort="none")
    events, stats = turn(session.send("Hello"))
    assert not [event for event in events if isinstance(event, Reasoning | Thought)]
    assert answer(events)
    assert stats.reasoning == 0
    assert stats.finished
    # The empty analysis is not part of the next prompt.
    before = len(session._prompt())
    _, stats = turn(session.send("Hello"))
    assert stats.prefilled <= before


@pytest.mark.parametrize("limit", [0, 1, 7])
def test_reasoning_is_closed_at_its_limit_and_the_answer_follows(model, limit):
    session = make_session(model, functions=(), max_reasoning=limit)
    events, stats = turn(session.send("What is 123 + 456?"))
    assert stats.reasoning == limit
    assert stats.finished
    assert answer(events)
    assert [message.channel for message in session.messages][:3] == [None, "analysis", "final"]


def test_a_model_that_stops_without_an_answer_is_asked_for_one(model, script, monkeypatch):
    session = make_session(model, functions=())
    script("<|channel|>analysis<|message|>Hm.<|end|><|return|>Yes.<|return|>")
    events, stats = turn(session.send("Hello"))
    assert (answer(events), stats.finished) == ("Yes.", True)
    assert [message.channel for message in session.messages] == [None, "analysis", "final"]


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("<|channel|>analysis about it", "Yes."),
        ("<|channel|>thoughts", "Yes."),
        ("<|channel|>analysis to", "Yes."),
        ("<|channel|>final-ish", "Well."),
        ("<|constrain|>", "Well."),
        ("<|channel|>analysis<|channel|>x", "Yes."),
        ("", "Well."),
    ],
)
def test_a_broken_header_still_gives_an_answer(model, script, header, said):
    session = make_session(model, functions=())
    script(f"{header}<|message|>Well.<|return|>" + ("Yes.<|return|>" if said == "Yes." else ""))
    events, stats = turn(session.send("Hello"))
    assert (answer(events), stats.finished) == (said, True)
    # What is read again is sound, whatever the model wrote.
    prompt = session.tokenizer.decode(session._prompt())
    assert prompt.endswith(f"<|start|>assistant<|channel|>final<|message|>{said}<|end|><|start|>assistant")


def test_a_header_without_end_is_ended(model, script, monkeypatch):
    monkeypatch.setattr(chat_answer, "MAX_HEADER", 20)
    session = make_session(model, functions=())
    script("<|channel|>" + "1" * 20 + "Yes.<|return|>")
    events, stats = turn(session.send("Hello"))
    assert (answer(events), stats.finished) == ("Yes.", True)


def test_nobody_else_speaks(model, script, monkeypatch):
    """A model that goes on with the user's next message is stopped there."""
    session = make_session(model, functions=())
    script("<|channel|>final<|message|>Yes.<|end|><|start|>user<|message|>")
    events, stats = turn(session.send("Hello"))
    assert stats.finished
    assert [message.content for message in session.messages] == ["Hello", "Yes."]
    assert answer(events) == "Yes."


def test_no_answer_at_all_is_told(model, script, monkeypatch):
    session = make_session(model, functions=())
    script("<|return|><|return|>Yes.<|return|>")
    events, stats = turn(session.send("Hello"))
    assert (answer(events), stats.finished) == ("", False)
    events, stats = turn(session.resume())
    assert (answer(events), stats.finished) == ("Yes.", True)
    assert session.messages == (Message("user", "Hello"), Message("assistant", "Yes.", "final"))


def test_text_between_messages_is_neither_told_nor_kept(model, script):
    session = make_session(model, functions=())
    script(
        f"Sure!<|start|>assistant<|channel|>analysis<|message|>Hm.<|end|> 364 <|start|>assistant{OPENING}4<|return|>"
    )
    events, stats = turn(session.send("Hello"))
    assert (answer(events), stats.finished) == ("4", True)
    assert [message.content for message in session.messages] == ["Hello", "Hm.", "4"]
    kept = make_session(model, functions=())
    kept.restore(session.transcript)
    assert kept._prompt() == session._prompt()
    assert "364" not in session.tokenizer.decode(session._prompt())


def test_text_before_the_first_header_is_kept_as_a_preamble(model, script):
    session = make_session(model, functions=())
    script(f"Well. {OPENING}4<|return|>")
    events, _ = turn(session.send("Hello"))
    assert [event for event in events if isinstance(event, Preamble)] == [Preamble("Well.")]
    assert session.messages[1:] == (
        Message("assistant", "Well.", "commentary"),
        Message("assistant", "4", "final"),
    )
    kept = make_session(model, functions=())
    kept.restore(session.transcript)
    assert kept._prompt() == session._prompt()


RESULT = "<|start|>functions.f to=assistant<|channel|>commentary<|message|>"


@pytest.mark.parametrize(
    "result",
    [
        RESULT,
        "<|start|>f<|message|>9<|end|>",
        "<|start|>f<|message|>9<|start|>",
        "<|start|>f<|message|>9<|return|>",
        "functions.f to=assistant<|message|>",
    ],
)
def test_what_a_model_answers_for_a_tool_is_taken_back(model, script, result):
    session = make_session(model, functions=())
    script(f"<|channel|>analysis<|message|>Hm.<|end|>{result}Yes.<|return|>")
    events, stats = turn(session.send("Hello"))
    assert (answer(events), stats.finished) == ("Yes.", True)
    assert [message.content for message in session.messages] == ["Hello", "Hm.", "Yes."]
    assert "".join(event.text for event in events if isinstance(event, Reasoning)) == "Hm."
    # Nor was the answer sampled behind it.
    held = session.tokenizer.decode(session.prompt_cache.ids)
    assert "functions.f" not in held
    assert "<|message|>9" not in held


def test_what_a_model_answers_for_a_tool_first_of_all_is_taken_back(model, script):
    session = make_session(model, functions=())
    script("functions.f to=assistant<|message|>Yes.<|return|>")
    events, stats = turn(session.send("Hello"))
    assert (answer(events), stats.finished) == ("Yes.", True)
    assert session.tokenizer.decode(session.prompt_cache.ids).endswith(f"<|start|>assistant{OPENING}Yes.")


def test_a_tool_answers_itself_where_the_model_would_have(model, script):
    session = make_session(model, functions=[Function(Tool("f"), lambda x: {"got": x})])
    script(CALL.removesuffix("<|call|>") + f"<|end|>{RESULT}" + f"{OPENING}Ok.<|return|>")
    events, stats = turn(session.send("Hello"))
    assert (answer(events), stats.finished) == ("Ok.", True)
    assert [event.output for event in events if isinstance(event, ToolResult)] == ['{"got": 1}']
