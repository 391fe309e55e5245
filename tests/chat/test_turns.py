"""What a turn costs, and that going back, on or anew changes nothing in what is said."""

import dataclasses
import json
import re
from contextlib import suppress

import jsonschema
import mlx.core as mx
import pytest

import gptoss_mlx
from gptoss_mlx import GptOssError, Sampling, Session
from gptoss_mlx.chat import answer as chat_answer
from gptoss_mlx.chat.turn import Thought, ToolResult
from gptoss_mlx.demo import FUNCTIONS
from gptoss_mlx.engine.prompt_cache import PromptCache
from gptoss_mlx.engine.tokenizer import Tokenizer
from gptoss_mlx.harmony.messages import Message, Tool
from gptoss_mlx.harmony.parse import Content, Preamble, Reasoning, ToolCall
from gptoss_mlx.harmony.render import encode, render_message
from gptoss_mlx.memory.plan import EngineConfig
from gptoss_mlx.model.kv_cache import MAX_SNAPSHOTS
from gptoss_mlx.tools.toolbox import Function

QUESTIONS = [
    "My locker code is 4711.",
    "What is the weather in Bermi?",
    "What is 12 + 30?",
    "What is gptoss-mlx?",
    "What is the weather in Tolka?",
    "What is 81 - 20?",
    "What is my locker code?",
    "What is the weather in Runo?",
    "What is 40 - 7?",
    "My dog's name is Selmo.",
    "What is the weather in Maket?",
    "What is 55 + 28?",
    "What is my dog's name?",
    "What is 31 + 31?",
    "What is the weather in Lida?",
    "What is 90 - 31?",
    "What is my locker code?",
    "What is 81 - 20?",
    "What is gptoss-mlx?",
    "What is 17 + 11?",
]


@pytest.fixture(scope="module")
def model(demo_folder):
    return gptoss_mlx.load(demo_folder)


def make_session(model, **options):
    options = {"functions": FUNCTIONS, "max_tokens": 300} | options
    return Session(model, sampling=Sampling(temperature=0), current_date="2026-01-02", **options)


def turn(events):
    events = list(events)
    return events[:-1], events[-1]


def answer(events):
    return "".join(event.text for event in events if isinstance(event, Content))


def length(session, messages):
    return sum(len(encode(render_message(message), session.tokenizer)) for message in messages)


CALL = '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"x": 1}<|call|>'
START_OF_ANSWER = 2  # <|start|>assistant
UNFED = 1  # the last token sampled, or its replacement


class Scripted:
    """Samples what it is told instead of the likeliest, round by round: the network is fed all the same."""

    waiting: list[int]

    def __init__(self, *ignored, **options):
        pass

    def __call__(self, logits, allowed=None):
        return mx.array([self.waiting.pop(0) if self.waiting else 0])


@pytest.fixture
def script(model, monkeypatch):
    """Let the model write this markup."""

    def prepare(text):
        monkeypatch.setattr(chat_answer, "Sampler", Scripted)
        Scripted.waiting = Tokenizer.load(model.path).encode_markup(text)
        return Scripted.waiting

    yield prepare
    assert not Scripted.waiting


def test_twenty_turns_prefill_only_what_is_new(model):
    """Of an earlier turn, what is left without its reasoning; of this one, the question and what tools answered."""
    session = make_session(model)
    new = len(session._head()) + START_OF_ANSWER
    for question in QUESTIONS:
        before = len(session.messages)
        _, stats = turn(session.send(question))
        said = session.messages[before:]
        assert [message.role for message in said].count("functions.get_weather") == ("weather" in question)
        new += length(session, said[:1])
        results = [message for message in said if message.role.startswith("functions.")]
        if results:
            new += UNFED + length(session, results) + START_OF_ANSWER
        assert stats.prefilled == new, question
        # What the next prompt has beside its question: this turn without its reasoning; if there was none, it is held.
        left = [message for message in said[1:] if message.channel != "analysis"]
        new = length(session, left) if len(left) < len(said[1:]) else UNFED + START_OF_ANSWER
    assert session.context_used < model.context


def test_results_equal_a_cold_start(model):
    """Each turn again, by a session that reads the whole conversation so far in one go."""
    session = make_session(model)
    for question in QUESTIONS:
        cold = make_session(model)
        cold.restore(session.transcript)
        events, stats = turn(session.send(question))
        cold_events, cold_stats = turn(cold.send(question))
        assert events == cold_events, question
        assert session.transcript == cold.transcript
        assert stats.prefilled < cold_stats.prefilled or question is QUESTIONS[0]


def state_of(session):
    return [array[:, :, : session.context_used] for array in session.prompt_cache.cache.arrays()]


def test_going_back_leaves_no_trace_bit_for_bit(model):
    """A session that took questions back and was interrupted, and one that never did: the same KV state. (A retry reads
    one token by itself, which rounds differently from the same token among others.)"""
    straight, winding = make_session(model), make_session(model)
    for question in QUESTIONS[:4]:
        list(straight.send(question))
    list(winding.send(QUESTIONS[0]))
    list(winding.send("What is 55 + 28?"))
    assert winding.undo() == "What is 55 + 28?"
    list(winding.send(QUESTIONS[1]))
    events = winding.send("What is gptoss-mlx?")
    next(event for event in events if isinstance(event, Reasoning))
    events.close()
    winding.undo()
    list(winding.send(QUESTIONS[2]))
    list(winding.send(QUESTIONS[3]))
    assert winding.messages == straight.messages
    assert winding.context_used == straight.context_used
    for ours, theirs in zip(state_of(winding), state_of(straight), strict=True):
        assert mx.array_equal(ours, theirs)


def test_undo_edit_and_retry_read_only_what_differs(model):
    session = make_session(model)
    list(session.send(QUESTIONS[0]))
    list(session.send("What is 12 + 30?"))
    (_, first), question = turn(session.send("Hello")), Message("user", "Hello")
    session.undo()
    assert turn(session.send("Hello"))[1].prefilled == 1
    assert turn(session.retry())[1].prefilled == 1
    session.undo()
    other = Message("user", "What is 40 - 7?")
    expected = first.prefilled - length(session, [question]) + length(session, [other])
    events, stats = turn(session.send(other.content))
    assert answer(events) == "40 - 7 = 33"
    # The state behind the last answer was overwritten: the mark of the turn before is the longest prefix.
    assert stats.prefilled == expected


def test_prefilled_ahead_only_the_message_is_left(model):
    session = make_session(model)
    opening = len(encode(list(render_message(Message("user", "")))[:3], session.tokenizer))

    def prefilled_and_asked(question):
        steps = 0
        while session.prefill_ahead(5):
            steps += 1
        assert session.prefill_ahead(5) == 0
        _, stats = turn(session.send(question))
        assert stats.prefilled == length(session, [Message("user", question)]) - opening + START_OF_ANSWER
        return steps

    assert prefilled_and_asked(QUESTIONS[0]) > 1  # the instructions and tools
    assert prefilled_and_asked(QUESTIONS[2]) > 1  # the first answer
    session.undo()
    assert prefilled_and_asked("What is 55 + 28?") == 0
    session.reset()
    assert prefilled_and_asked("What is 31 + 31?") == 0  # the instructions are still there


def test_marks_stay_few(model):
    session = make_session(model)
    for _ in range(2 * MAX_SNAPSHOTS):
        list(session.send("Hello"))
    assert len(session.prompt_cache.snapshots) == MAX_SNAPSHOTS
    assert session.prompt_cache.snapshots[0].offset == len(session._head())


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


def test_an_answer_that_breaks_off_is_told_and_goes_on(model):
    whole = make_session(model, functions=())
    list(whole.send("What is gptoss-mlx?"))
    for limit in (3, 12, 30, 45):
        session = make_session(model, functions=(), max_tokens=limit)
        events, stats = turn(session.send("What is gptoss-mlx?"))
        texts, parts = answer(events), 1
        while not stats.finished:
            events, stats = turn(session.resume())
            assert stats.prefilled == 1
            texts += answer(events)
            parts += 1
        assert parts > 1
        assert session.messages == whole.messages
        assert texts == whole.messages[-1].content
        with pytest.raises(GptOssError, match="nothing to go on with"):
            session.resume()


def test_an_interrupted_answer_goes_on(model):
    session = make_session(model, functions=())
    events = session.send("What is gptoss-mlx?")
    seen = ""
    for event in events:
        seen += event.text if isinstance(event, Content) else ""
        if len(seen) > 10:
            break
    events.close()
    assert session.messages[-1] == Message("assistant", seen, "final")
    rest = answer(session.resume())
    assert session.messages[-1].content == seen + rest
    whole = make_session(model, functions=())
    list(whole.send("What is gptoss-mlx?"))
    assert session.messages == whole.messages


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


def test_several_calls_in_one_turn(model, script, monkeypatch):
    seen = []
    function = Function(Tool("f"), lambda x: seen.append(x) or {"got": x})
    session = make_session(model, functions=[function])
    first, second = CALL.replace("call", "end"), CALL.replace("1", "2")
    script(f"{first}<|start|>assistant{second}<|channel|>final<|message|>Ok.<|return|>")
    events, _ = turn(session.send("Hello"))
    assert seen == [1, 2]
    assert [event for event in events if isinstance(event, ToolResult)] == [
        ToolResult("f", '{"got": 1}'),
        ToolResult("f", '{"got": 2}'),
    ]
    assert [m.role for m in session.messages] == ["user", "assistant", "assistant", *["functions.f"] * 2, "assistant"]


def test_a_model_that_calls_for_ever_has_to_answer(model, script, monkeypatch):
    session = make_session(model, functions=[Function(Tool("f"), lambda x: x)])
    monkeypatch.setattr("gptoss_mlx.chat.session.MAX_CALLS", 3)
    script(CALL * 3 + "Enough.<|return|>")
    events, stats = turn(session.send("Hello"))
    assert (answer(events), stats.finished) == ("Enough.", True)
    assert len([event for event in events if isinstance(event, ToolCall)]) == 3


@pytest.mark.parametrize(
    ("approve", "output"),
    [(None, "nobody is here"), (lambda call, preview: False, "did not allow"), (lambda call, preview: True, "done")],
)
def test_who_may_call(model, script, monkeypatch, approve, output):
    asked = []
    function = Function(Tool("f"), lambda x: "done", asks=True, preview=lambda x: f"run {x}")
    ask = approve and (lambda call, preview: asked.append(preview) or approve(call, preview))
    session = make_session(model, functions=[function], approve=ask)
    script(CALL + "<|channel|>final<|message|>Ok.<|return|>")
    events, _ = turn(session.send("Hello"))
    (result,) = [event for event in events if isinstance(event, ToolResult)]
    assert output in result.output
    assert asked == (["run 1"] if approve else [])


def test_ctrl_c_in_a_tool_is_told_to_the_model(model, script, monkeypatch):
    def stop(x):
        raise KeyboardInterrupt

    session = make_session(model, functions=[Function(Tool("f"), stop)])
    script(CALL + "<|channel|>final<|message|>Ok.<|return|>")
    with pytest.raises(KeyboardInterrupt):
        list(session.send("Hello"))
    assert "stopped this call" in session.messages[-1].content
    events, stats = turn(session.resume())
    assert (answer(events), stats.finished) == ("Ok.", True)


SCHEMA = {
    "type": "object",
    "properties": {
        "sum": {"type": "integer", "minimum": 0, "maximum": 999},
        "steps": {"type": "array", "items": {"type": "string", "maxLength": 20}, "maxItems": 2},
    },
    "required": ["sum", "steps"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("effort", ["none", "low"])
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


def test_a_token_computed_ahead_changes_nothing(model, look_ahead):
    """As on a GPU, where the state already holds the token that ends an answer."""
    questions = [question for question in QUESTIONS if "weather" not in question]
    sessions = []
    for ahead in (False, True):
        look_ahead(ahead)
        session = make_session(model)
        for question in questions:
            list(session.send(question))
        session.undo()
        events = session.send("What is gptoss-mlx?")
        next(event for event in events if isinstance(event, Content))
        events.close()
        assert len(session.prompt_cache.ids) == session.context_used
        list(session.resume())
        sessions.append(session)
    plain, ahead = sessions
    assert ahead.messages == plain.messages
    assert ahead.stats[-1].finished


def weather_of(location):
    return {"temperature": 21, "sky": "cloudy"}


def weather_session(model, **options):
    return make_session(model, functions=[Function(FUNCTIONS[0].tool, weather_of)], **options)


@pytest.mark.parametrize("kind", [ToolCall, ToolResult])
def test_stopped_around_a_call_it_goes_on_with_the_call(model, kind):
    """The answer is made of what the tool says, not invented."""
    session = weather_session(model)
    events = session.send("What is the weather in Bermi?")
    next(event for event in events if isinstance(event, kind))
    events.close()
    kept = weather_session(model)
    kept.restore(session.transcript)
    for each in (session, kept):
        events, stats = turn(each.resume())
        assert stats.finished
        assert "21 degrees" in answer(events)


def test_what_was_broken_off_is_known_after_a_restart(model):
    whole = make_session(model, functions=())
    list(whole.send("What is gptoss-mlx?"))
    for count in (1, 5, 12, 25, 33):
        session = make_session(model, functions=(), max_tokens=count)
        list(session.send("What is gptoss-mlx?"))
        kept = make_session(model, functions=())
        kept.restore(session.transcript)
        assert turn(kept.resume())[1].finished
        assert kept.messages == whole.messages


def test_ids_outside_the_vocabulary_are_not_taken(model):
    session = make_session(model, functions=())
    list(session.send("Hello"))
    transcript = session.transcript
    for wrong in (-7, 10**9):
        ids = (*transcript.ids[:-1], (*transcript.ids[-1][:-1], wrong, transcript.ids[-1][-1]))
        session.restore(dataclasses.replace(transcript, ids=ids))
        assert turn(session.send("Hello"))[1].finished
        session.restore(transcript)


def test_a_result_that_is_too_long_is_told_so(demo_folder):
    model = gptoss_mlx.load(demo_folder, EngineConfig(600, 16, 64))
    session = make_session(model, functions=[Function(FUNCTIONS[0].tool, lambda location: "no " * 2000)])
    events, stats = turn(session.send("What is the weather in Bermi?"))
    (result,) = [event for event in events if isinstance(event, ToolResult)]
    assert "the context has room for" in json.loads(result.output)["error"]
    assert stats.finished


def test_a_result_that_no_context_holds_is_not_counted_to_its_end(demo_folder):
    model = gptoss_mlx.load(demo_folder, EngineConfig(600, 16, 64))
    for output, least in (("no " * 10**6, 601), ("n" * 10**6, 10**6 // 13)):
        session = make_session(model, functions=[Function(FUNCTIONS[0].tool, lambda location, output=output: output)])
        events, stats = turn(session.send("What is the weather in Bermi?"))
        (result,) = [event for event in events if isinstance(event, ToolResult)]
        told = re.fullmatch(
            "the result has at least ([0-9,]+) tokens: the context has room for [0-9]+",
            json.loads(result.output)["error"],
        )
        assert int(told[1].replace(",", "")) >= least
        assert stats.finished


def test_an_answer_at_the_end_of_the_context_goes_on_where_turns_are_dropped(demo_folder):
    model = gptoss_mlx.load(demo_folder, EngineConfig(260, 16, 64))
    session = make_session(model, functions=(), drop_when_full=True)
    stats = None
    for number in range(8):
        _, stats = turn(session.send(f"What is {number} + 30?"))
        while not stats.finished:
            _, stats = turn(session.resume())
    assert session.messages[-1].content == "7 + 30 = 37"


def test_an_answer_without_a_header_is_not_by_the_schema(model, script):
    session = make_session(model, functions=(), response_schema=SCHEMA)
    script("<|channel|>final well<|return|>")
    assert not turn(session.send("Hello"))[1].finished


BY_SCHEMA = '{"sum": 1, "steps": []}'
OPENING = "<|channel|>final<|message|>"


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


@pytest.mark.parametrize("recipient", ["functions.python", "python"])
def test_a_function_may_be_called_like_a_builtin_tool(model, script, recipient):
    session = make_session(model, functions=[Function(Tool("python"), lambda x: {"got": x})])
    script(f'<|channel|>commentary to={recipient} json<|message|>{{"x": 1}}<|call|>{OPENING}Ok.<|return|>')
    events, _ = turn(session.send("Hello"))
    assert [event.output for event in events if isinstance(event, ToolResult)] == ['{"got": 1}']
    _, called, answered, _ = session.messages
    assert (called.recipient, called.channel) == ("functions.python", "commentary")
    assert (answered.role, answered.channel) == ("functions.python", "commentary")
    kept = make_session(model, functions=session.toolbox.functions.values())
    kept.restore(session.transcript)
    assert kept.messages == session.messages
    assert kept._prompt() == session._prompt()


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


def test_going_back_step_by_step(model):
    ids = [1 + number % 1000 for number in range(300)]
    stepped, straight = PromptCache(model), PromptCache(model)
    for end in (300, 299, 298):
        stepped.prepare(ids[:end], 1000)
    ours, theirs = stepped.read([*ids[:298], 7]), straight.read([*ids[:298], 7])
    assert mx.abs(ours - theirs).max() < 0.01
