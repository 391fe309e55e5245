"""Answers by a JSON schema."""

import json
from contextlib import suppress

import jsonschema
import pytest

from chat.conversing import OPENING, Scripted, answer, make_session, turn
from gptoss_mlx import GptOssError, Sampling, Session
from gptoss_mlx.harmony.messages import Message
from gptoss_mlx.harmony.parse import Preamble

SCHEMA = {
    "type": "object",
    "properties": {
        "sum": {"type": "integer", "minimum": 0, "maximum": 999},
        "steps": {"type": "array", "items": {"type": "string", "maxLength": 20}, "maxItems": 2},
    },
    "required": ["sum", "steps"],
    "additionalProperties": False,
}

BY_SCHEMA = '{"sum": 1, "steps": []}'


@pytest.mark.parametrize(
    ("temperature", "effort"),
    [(0, "low"), (1, "none"), *(pytest.param(*more, marks=pytest.mark.slow) for more in ((0, "none"), (1, "low")))],
)
def test_an_answer_by_a_schema_always_parses(model, temperature, effort):
    """The demo was never trained on JSON answers: what it says is the schema's doing. Reasoning stays free."""
    sampling = Sampling(temperature=temperature, seed=1)
    session = Session(model, sampling=sampling, response_schema=SCHEMA, reasoning_effort=effort, max_tokens=300)
    for question in ("What is 12 + 30?", "What is gptoss-mlx?"):
        events, stats = turn(session.send(question))
        assert stats.finished
        jsonschema.validate(json.loads(answer(events)), SCHEMA)
        assert session.messages[-1].content == answer(events)


def test_an_answer_by_a_schema_goes_on_where_it_broke_off(model):
    options = {"response_schema": SCHEMA, "reasoning_effort": "none", "functions": ()}
    text = answer(turn(make_session(model, **options).send("Hello"))[0])
    parts = make_session(model, **options | {"max_tokens": 4})
    events, stats = turn(parts.send("Hello"))
    said = answer(events)
    while not stats.finished:
        events, stats = turn(parts.resume())
        said += answer(events)
    assert said == text
    jsonschema.validate(json.loads(text), SCHEMA)


def test_an_answer_without_a_header_is_not_by_the_schema(model, script):
    session = make_session(model, functions=(), response_schema=SCHEMA)
    script("<|channel|>final well<|return|>")
    assert not turn(session.send("Hello"))[1].finished


@pytest.mark.parametrize(
    "before",
    [
        "<|channel|>analysis<|message|>Hm.<|end|> 364 <|start|>assistant",
        "<|channel|>analysis<|message|>Hm.<|end|> 364 ",
        "<|channel|>analysis<|message|>Hm.<|end|>364<|end|><|start|>assistant",
        "364<|start|>assistant",
        "364 and more ",
        "<|channel|>final 364<|start|>assistant",
        "<|channel|>commentary 364<|end|><|start|>assistant",
    ],
)
def test_by_a_schema_nothing_else_is_told_or_kept(model, script, before):
    session = make_session(model, functions=(), response_schema=SCHEMA)
    script(f"{before}{OPENING}{BY_SCHEMA}<|return|>")
    events, stats = turn(session.send("Hello"))
    assert (answer(events), stats.finished) == (BY_SCHEMA, True)
    assert not [event for event in events if isinstance(event, Preamble)]
    kept = [message.content for message in session.messages[1:] if message.channel != "analysis"]
    assert kept == [BY_SCHEMA]


@pytest.mark.parametrize("text", ["364", "<|channel|>final 364 and more", "<|channel|>final<|constrain|>json 364 x"])
def test_an_answer_without_a_complete_header_is_neither_told_nor_kept(model, script, text):
    session = make_session(model, functions=(), response_schema=SCHEMA)
    script(f"{text}<|return|>")
    events, stats = turn(session.send("Hello"))
    assert (answer(events), stats.finished) == ("", False)
    assert len(session.messages) == 1
    script(f"{BY_SCHEMA}<|return|>")
    events, stats = turn(session.resume())
    assert (answer(events), stats.finished) == (BY_SCHEMA, True)
    assert session.messages[1:] == (Message("assistant", BY_SCHEMA, "final"),)


def test_an_answer_that_broke_off_without_a_header_is_not_told(model, script):
    session = make_session(model, functions=(), response_schema=SCHEMA, max_tokens=3)
    script("3 6")
    events, stats = turn(session.send("Hello"))
    assert (answer(events), stats.finished, len(session.messages)) == ("", False, 1)


@pytest.mark.parametrize("said", ["Well, it is", '{"sum": 1000, "st'])
def test_what_the_schema_does_not_allow_is_begun_anew(model, script, said):
    """A conversation that was kept without it."""
    whole = make_session(model, functions=())
    script(f"{OPENING}{said}")
    whole.max_tokens = len(Scripted.waiting)
    assert not turn(whole.send("Hello"))[1].finished
    session = make_session(model, functions=(), response_schema=SCHEMA)
    session.restore(whole.transcript)
    script(f"{OPENING}{BY_SCHEMA}<|return|>")
    events, stats = turn(session.resume())
    assert (answer(events), stats.finished) == (BY_SCHEMA, True)
    assert session.messages[1:] == (Message("assistant", BY_SCHEMA, "final"),)


OVERLAPPING = {"oneOf": [{"type": "integer"}, {"type": "number", "maximum": 5}]}


@pytest.mark.parametrize(("number", "fits"), [("7", True), ("3", False)])
def test_an_answer_that_breaks_a_rule_is_not_finished(model, script, number, fits):
    """The grammar allows what fits either of the two; only a whole number can be seen to fit both."""
    session = make_session(model, functions=(), response_schema=OVERLAPPING)
    script(f"<|channel|>final<|message|>{number}<|return|>")
    if fits:
        assert turn(session.send("Hello"))[1].finished
        return
    with pytest.raises(GptOssError, match=r"does not fit the JSON schema: \$ breaks the rule oneOf"):
        list(session.send("Hello"))
    assert session.messages == ()
    script("<|channel|>final<|message|>9<|return|>")
    assert turn(session.send("Hello"))[1].finished


def test_text_between_messages_is_no_part_of_a_finished_answer(model, script):
    session = make_session(model, functions=(), response_schema=SCHEMA)
    said = '<|start|>assistant<|channel|>final<|message|>{"sum":1,"steps":[]}<|return|>'
    script(f"<|channel|>analysis<|message|>So<|end|> 364 {said}")
    with suppress(GptOssError):
        events, stats = turn(session.send("Hello"))
        assert not stats.finished or json.loads(answer(events)) == {"sum": 1, "steps": []}


def test_the_model_is_told_the_schema_itself(model):
    session = make_session(model, response_schema={"name": "sum", "strict": True, "schema": SCHEMA})
    assert session.response_schema == SCHEMA
