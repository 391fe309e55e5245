"""Calls that follow the schemas of their tools, that have to come, or that must not."""

import json
import re

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chat.calling import (
    BY_SCHEMA,
    CALL,
    GREEDY,
    PLACE,
    THOUGHT,
    TIME,
    WEATHER,
    Wishing,
    Writing,
    assert_called,
    request_for,
)
from engine.grammars import INTEGER, closed
from engine.test_json_grammar import RANDOM_SCHEMAS
from gptoss_mlx import GptOssError, Sampling
from gptoss_mlx.chat import answer as chat_answer
from gptoss_mlx.chat.call_rules import call_rules
from gptoss_mlx.chat.history import is_worth_saving
from gptoss_mlx.chat.replay import Replay
from gptoss_mlx.chat.request import AnswerRequest, Called, TokenLogprobs
from gptoss_mlx.chat.request_answer import RequestAnswer
from gptoss_mlx.chat.turn import Prefill, Waiting
from gptoss_mlx.engine.prompt_cache import PromptCache
from gptoss_mlx.engine.tokenizer import Tokenizer
from gptoss_mlx.harmony.messages import Conversation, Message, Tool
from gptoss_mlx.harmony.parse import Content, Reasoning, ToolCall

IN_FORM = re.compile(
    r"(<\|channel\|>analysis<\|message\|>[^<]*<\|end\|><\|start\|>assistant)?"
    r"( to=functions\.\w+<\|channel\|>commentary|<\|channel\|>commentary to=functions\.\w+)"
    r" <\|constrain\|>json<\|message\|>[^<]*<\|call\|>"
)


@pytest.fixture
def wish(model, monkeypatch):
    def prepare(text, patience=0):
        monkeypatch.setattr(chat_answer, "Sampler", Wishing)
        monkeypatch.setattr(Wishing, "patience", patience)
        Wishing.wishes = Tokenizer.load(model.path).encode_markup(text)

    return prepare


@pytest.mark.parametrize("reasons", [True, False])
@pytest.mark.parametrize("question", ["What is the weather in Bermi?", "What is 12 + 30?", "Hello"])
def test_a_call_that_is_required_comes(model, reasons, question):
    writing = Writing(model, request_for(question=question, tool_choice="required", reasons=reasons)).all()
    assert_called(writing)
    assert any(isinstance(event, Reasoning) for event in writing.events) <= reasons
    assert writing.answer.emitted[-1].ids is not None  # fit to be read again as they are


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"tool_choice": "required"}, "tool_calls"),
        ({"tool_choice": "required", "reasons": False}, "tool_calls"),
        ({"tool_choice": "required", "only_tool": "get"}, "tool_calls"),
        ({"strict_tools": frozenset({"get_weather"})}, "tool_calls"),
        ({"tool_choice": "none"}, "stop"),
        ({"tool_choice": "none", "reasons": False}, "stop"),
        ({"tool_choice": "required", "max_tokens": 8}, "length"),
    ],
    ids=str,
)
def test_a_client_reads_how_it_ended(model, options, reason):
    request = request_for(WEATHER, TIME, **options)
    *events, stats = RequestAnswer(request, model, Replay(model.tokenizer)).write(PromptCache(model))
    calls = [event for event in events if isinstance(event, Called)]
    assert (stats.reason, len(calls)) == (reason, int(reason == "tool_calls"))
    for call in calls:
        assert request.only_tool in (None, call.name)
        jsonschema.validate(json.loads(call.arguments), PLACE if call.name == "get_weather" else closed())


@pytest.mark.parametrize("seed", range(3))
def test_whatever_is_sampled_a_required_call_is_by_its_schema(model, seed):
    sampling = Sampling(temperature=2, seed=seed)
    request = request_for(WEATHER, TIME, tool_choice="required", reasons=False, sampling=sampling)
    (called,) = Writing(model, request).all().calls
    schema = PLACE if called.name == "get_weather" else closed()
    jsonschema.validate(json.loads(called.arguments), schema)


@pytest.mark.parametrize("name", ["get", "get_weather"])
def test_the_model_chooses_among_several_and_a_client_can_choose_for_it(model, wish, name):
    """One name begins with the other."""
    schema = PLACE if name == "get_weather" else closed()
    wish(f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>")
    assert_called(Writing(model, request_for(WEATHER, TIME, tool_choice="required")).all(), name, schema)
    other = {"get": "get_weather", "get_weather": "get"}[name]
    wish(f"<|channel|>commentary to=functions.{other} <|constrain|>json<|message|>")
    request = request_for(WEATHER, TIME, tool_choice="required", only_tool=name)
    assert_called(Writing(model, request).all(), name, schema)


@pytest.mark.parametrize(
    "instead",
    [
        "<|channel|>final<|message|>It rains.<|return|>",
        "It rains.<|return|>",
        "<|return|>",
        "<|channel|>commentary<|message|>I look.<|end|>",
        f"{THOUGHT}<|start|>assistant<|channel|>final<|message|>It rains.<|return|>",
        f"{THOUGHT}<|start|>assistant{THOUGHT}",
        f"{THOUGHT}<|start|>user<|message|>And?",
        f"{THOUGHT}It rains.<|return|>",
        "<|channel|>analysis<|message|>Hm.<|return|>",
        "<|channel|>analysis<|message|>Hm.<|call|>",
        "<|channel|>analysis<|message|>Hm.<|start|>assistant<|channel|>final<|message|>It rains.<|return|>",
        "<|channel|>analysis<|message|>Hm.<|channel|>final<|message|>It rains.<|return|>",
        "<|channel|>analysis to=python<|message|>1<|call|>",
        "<|channel|>commentary to=functions.other <|constrain|>json<|message|>{}<|call|>",
        "<|channel|>commentary to=functions.get_weather_2 <|constrain|>json<|message|>{}<|call|>",
        f'{CALL}{{"place": 3}}<|call|>',
        f"{CALL}none<|end|>",
        f"{CALL}{BY_SCHEMA}<|return|>",
        f"{CALL}{BY_SCHEMA}<|end|><|start|>assistant<|channel|>final<|message|>It rains.<|return|>",
        f"{THOUGHT}<|start|>functions.get_weather to=assistant<|channel|>commentary<|message|>Rain.<|end|>",
    ],
)
def test_nothing_comes_instead_of_a_required_call(model, wish, instead):
    wish(instead)
    writing = Writing(model, request_for(tool_choice="required")).all()
    assert_called(writing)
    assert IN_FORM.fullmatch(writing.markup)


def test_reasoning_that_is_cut_off_is_no_call_and_no_answer(model, wish):
    wish("<|channel|>analysis<|message|>" + 200 * "Hm. So. ")
    writing = Writing(model, request_for(tool_choice="required", max_tokens=40)).all()
    said = [event for event in writing.events[:-1] if not isinstance(event, Prefill | Waiting)]
    assert {type(event) for event in said} == {Reasoning}
    assert (writing.clock.sampled, writing.calls, writing.answer.finished) == (40, [], False)


def test_reasoning_is_closed_at_its_limit_and_the_call_follows(model, wish):
    wish("<|channel|>analysis<|message|>" + 200 * "Hm. So. ")
    writing = Writing(model, request_for(tool_choice="required"), max_reasoning=7).all()
    assert_called(writing)
    assert writing.clock.reasoning == 7


def test_a_call_that_is_cut_off_is_not_told(model):
    writing = Writing(model, request_for(tool_choice="required", reasons=False, max_tokens=16)).all()
    assert (writing.calls, writing.text, writing.answer.finished) == ([], "", False)


@pytest.mark.parametrize("tokens", [1, 5, 12, 16, 20])
def test_a_required_call_goes_on_where_it_broke_off(model, tokens):
    """Under the same rules, whose grammars are where the first part has left them."""
    options = {"tool_choice": "required", "reasons": False}
    whole = Writing(model, request_for(**options)).all()
    assert whole.clock.sampled > 20
    first = Writing(model, request_for(max_tokens=tokens, **options)).all()
    written = first.answer.draft.written
    later = Writing(model, request_for(**options), written=written, calls=first.rules.calls).all()
    assert (first.calls, later.calls) == ([], whole.calls)


@pytest.mark.parametrize(
    "call",
    [
        CALL,
        " to=functions.get_weather<|channel|>commentary json<|message|>",
        "<|channel|>analysis to=python code<|message|>",
        "<|channel|>commentary to=functions.other<|message|>",
        "<|start|>functions.get_weather<|channel|>commentary<|message|>",
        "<|start|>functions.get_weather to=assistant<|channel|>commentary<|message|>",
        "<|start|>get_weather<|message|>",
        f"<|channel|>commentary to=functions.get_weather json{BY_SCHEMA}<|call|>",
        f"to=functions.get_weather {BY_SCHEMA}<|call|>",
        f"<|channel|>commentary to=functions.get_weather {BY_SCHEMA}<|return|>",
        f"<|channel|>commentary to=functions.get_weather {BY_SCHEMA}<|end|><|return|>",
    ],
)
@pytest.mark.parametrize("before", ["", f"{THOUGHT}<|start|>assistant"])
def test_where_calls_must_not_come_the_answer_does(model, script, before, call):
    """A complete header of a call is where the model is stopped."""
    script(f"{before}{call}It rains.<|return|>")
    writing = Writing(model, request_for(tool_choice="none")).all()
    assert (writing.text, writing.calls, writing.answer.finished) == ("It rains.", [], True)
    said = [each.message for each in writing.answer.emitted if is_worth_saving(each.message)]
    assert [message.channel for message in said] == [*(["analysis"] if before else []), "final"]
    assert writing.markup.endswith("<|channel|>final<|message|>It rains.<|return|>")


@pytest.mark.parametrize("reasons", [True, False])
def test_a_model_that_would_call_answers_where_it_must_not(model, reasons):
    assert Writing(model, request_for(reasons=reasons)).all().calls
    writing = Writing(model, request_for(reasons=reasons, tool_choice="none")).all()
    assert writing.answer.finished
    assert writing.text
    assert not writing.calls


def test_without_tools_there_are_no_calls(model, script):
    script("<|channel|>commentary to=functions.f <|constrain|>json<|message|>It rains.<|return|>")
    request = AnswerRequest(Conversation((Message("user", "Hello"),)), sampling=GREEDY)
    writing = Writing(model, request).all()
    assert (writing.text, writing.calls) == ("It rains.", [])


@pytest.mark.parametrize(
    "header",
    [
        CALL,
        " to=functions.get_weather<|channel|>commentary json<|message|>",
        "<|channel|>commentary to=get_weather<|message|>",
        "<|channel|>commentary to=functions.get_weather json",
        "<|channel|>commentary to=functions.get_weather <|constrain|>json",
        "<|start|>functions.get_weather<|channel|>commentary<|message|>",
        "<|channel|>analysis functions.get_weather<|message|>",
    ],
)
@pytest.mark.parametrize(
    "wrong", ['{"place": 3}<|call|>', "rain<|call|>", "<|call|>", "<|end|>", f"{BY_SCHEMA}<|end|>"]
)
def test_a_strict_tool_is_called_by_its_schema_whatever_the_header(model, wish, header, wrong):
    wish(header + wrong)
    assert_called(Writing(model, request_for(strict_tools=frozenset({"get_weather"}))).all())


@pytest.mark.parametrize(
    "sloppy",
    [
        'to=functions.get_weather {"place": 3}<|call|>',
        '<|channel|>commentary to=functions.get_weather {"place": 3}<|call|>',
        '<|channel|>commentary to=functions.get_weather {"place": 3}<|end|>',
        '<|channel|>commentary to=functions.get_weather {"place": 3}<|start|>assistant',
        '<|start|>functions.get_weather<|channel|>commentary {"place": 3}<|call|>',
    ],
)
def test_a_call_without_a_complete_header_does_not_slip_past_its_schema(model, wish, sloppy):
    wish(sloppy + "<|channel|>final<|message|>It rains.<|return|>")
    writing = Writing(model, request_for(strict_tools=frozenset({"get_weather"}))).all()
    assert not [called for called in writing.calls if "3" in called.arguments]


def test_other_tools_and_the_answer_stay_free(model, script):
    options = {"strict_tools": frozenset({"get_weather"})}
    script("<|channel|>commentary to=functions.get <|constrain|>json<|message|>now<|call|>")
    assert Writing(model, request_for(WEATHER, TIME, **options)).all().calls == [ToolCall("get", "now")]
    script(f"{THOUGHT}<|start|>assistant<|channel|>final<|message|>It rains.<|return|>")
    writing = Writing(model, request_for(WEATHER, TIME, **options)).all()
    assert (writing.text, writing.answer.finished) == ("It rains.", True)
    script("It rains.<|return|>")
    assert Writing(model, request_for(WEATHER, TIME, **options)).all().text == "It rains."


@pytest.mark.parametrize(("said", "calls"), [(CALL, True), ("<|channel|>final<|message|>", False)])
def test_an_answer_and_its_calls_can_have_schemas(model, wish, said, calls):
    wish(f"{THOUGHT}<|start|>assistant{said}rain")
    schema = closed(rains={"type": "boolean"})
    writing = Writing(model, request_for(strict_tools=frozenset({"get_weather"})), schema=schema).all()
    if calls:
        assert_called(writing)
    else:
        jsonschema.validate(json.loads(writing.text), schema)
        assert writing.answer.finished


def test_a_call_that_breaks_a_rule_that_no_grammar_holds_is_an_error(model, wish):
    tool = Tool("add", "", closed(numbers={"type": "array", "items": INTEGER, "uniqueItems": True}))
    header = "<|channel|>commentary to=functions.add <|constrain|>json<|message|>"
    wish(f'{header}{{"numbers": [1, 2]}}<|call|>')
    request = request_for(tool, strict_tools=frozenset({"add"}))
    assert Writing(model, request).all().calls == [ToolCall("add", '{"numbers": [1, 2]}')]
    wish(f'{header}{{"numbers": [1, 1]}}<|call|>')
    writing = Writing(model, request)
    with pytest.raises(GptOssError, match=r"the call of add does not fit .* uniqueItems"):
        writing.all()
    assert not writing.calls


@pytest.mark.parametrize(
    ("tool", "reason"),
    [
        (Tool("add", "", {"type": "object", "contains": {}}), r"'add'.*contains"),
        (Tool("add", "", {"type": "object", "properties": {"a": {"type": "strange"}}}), r"'add'.*strange"),
        (Tool("add", "", {"type": "string"}), r"'add'.*'string'"),
        (Tool("add", "", {"type": "object", "properties": {"a": {"pattern": "("}}}), r"'add'.*pattern"),
        (Tool("add", "", {"$ref": "#/$defs/none"}), r"'add'.*leads nowhere"),
        (Tool("a b"), "'a b' has a name"),
        (Tool("a<|message|>"), "has a name"),
        (Tool(""), "has a name"),
    ],
)
@pytest.mark.parametrize(
    "options", [{"tool_choice": "required"}, {"strict_tools": frozenset({"add", "a b", "", "a<|message|>"})}]
)
def test_what_cannot_be_held_to_is_refused_before_anything_is_read(model, tool, reason, options):
    with pytest.raises(GptOssError, match=reason) as error:
        call_rules(request_for(WEATHER, tool, **options), model.tokenizer, model.config.vocab_size)
    assert "\n" not in str(error.value)


def test_a_tool_that_is_not_there_is_refused(model):
    def rules(request):
        call_rules(request, model.tokenizer, model.config.vocab_size)

    with pytest.raises(GptOssError, match="'other' has to be called, but is not given"):
        rules(request_for(tool_choice="required", only_tool="other"))
    with pytest.raises(GptOssError, match="none is given"):
        rules(AnswerRequest(Conversation((Message("user", "Hello"),)), tool_choice="required"))


def test_schemas_that_nobody_asked_to_follow_may_be_anything(model):
    rules = call_rules(request_for(Tool("add", "", {"contains": 1})), model.tokenizer, model.config.vocab_size)
    assert (rules.allowed, rules.required, rules.grammars) == (True, (), {})


@pytest.mark.parametrize(
    "parameters", [{}, {"properties": {"a": INTEGER}, "required": ["a"]}, {"type": ["object", "null"]}], ids=str
)
def test_arguments_are_an_object_even_where_the_schema_does_not_say_so(model, wish, parameters):
    wish('<|channel|>commentary to=functions.f <|constrain|>json<|message|>null{"a": 1}<|call|>')
    (called,) = Writing(model, request_for(Tool("f", "", parameters), tool_choice="required")).all().calls
    assert isinstance(json.loads(called.arguments), dict)
    jsonschema.validate(json.loads(called.arguments), parameters)


@pytest.mark.parametrize("reasons", [True, False])
def test_logprobs_are_those_of_the_answers_text(model, reasons):
    request = request_for(question="What is 12 + 30?", reasons=reasons, logprobs=3)
    writing = Writing(model, request).all()
    said = [event for event in writing.events if isinstance(event, TokenLogprobs)]
    assert b"".join(each.token for each in said).decode() == writing.text != ""
    for each in said:
        assert each.logprob <= 0
        assert len(each.top) == 3
        assert each.top[0] == (each.token, each.logprob)  # it is greedy
    plain = Writing(model, request_for(question="What is 12 + 30?", reasons=reasons)).all()
    said_alone, said_beside = (
        [event for event in each.events if not isinstance(event, TokenLogprobs | Prefill)] for each in (plain, writing)
    )
    assert said_alone == said_beside


def test_logprobs_follow_the_text_that_their_token_completes(model):
    events = Writing(model, request_for(question="What is 12 + 30?", reasons=False, logprobs=0)).all().events
    shown = arrived = b""
    for event in events:
        if isinstance(event, Content):
            shown += event.text.encode()
        elif isinstance(event, TokenLogprobs):
            arrived += event.token
            assert event.top == ()
            assert arrived.startswith(shown)
    assert shown == arrived


def test_a_call_and_reasoning_have_no_logprobs(model):
    events = Writing(model, request_for(tool_choice="required", logprobs=2)).all().events
    assert not [event for event in events if isinstance(event, TokenLogprobs)]


@pytest.mark.parametrize("count", [10, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_random_schemas_at_random(model, count):
    """Calls of a tool with any schema, sampled at random: one that ends is by the schema."""
    ended, errors = [], []

    @settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(st.dictionaries(st.sampled_from("abcd"), RANDOM_SCHEMAS, max_size=3), st.booleans(), st.integers(0, 2**32))
    def check(properties, further, seed):
        schema = {
            "type": "object",
            "properties": properties,
            "required": [*properties],
            "additionalProperties": further,
        }
        sampling = Sampling(temperature=1.5, seed=seed)
        request = request_for(
            Tool("f", "", schema), tool_choice="required", reasons=False, sampling=sampling, max_tokens=120
        )
        try:
            calls = Writing(model, request).all().calls
        except GptOssError as error:
            errors.append(str(error))
            return
        ended.append(len(calls))
        for called in calls:
            jsonschema.validate(json.loads(called.arguments), schema)

    check()
    assert sum(ended) > count / 3
    assert all("JSON schema" in error for error in errors)
