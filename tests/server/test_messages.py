"""Anthropic's Messages API: its own package talks to a real server, and requests have the shapes of real clients'."""

import asyncio
import json

import httpx
import pytest

from gptoss_mlx.chat.request import Called
from gptoss_mlx.chat.turn import Prefill, Thought
from gptoss_mlx.errors import GptOssError
from gptoss_mlx.harmony.messages import Message, Tool
from gptoss_mlx.harmony.parse import Content, Preamble, Reasoning
from gptoss_mlx.server import sse
from gptoss_mlx.server.errors import RequestError
from gptoss_mlx.server.messages import models_page

from .messages_app import ScriptedService, serving, stats

ASK = [{"role": "user", "content": "What is the weather in Bermi?"}]
BASIC = {"model": "any", "max_tokens": 100, "messages": ASK}
SCHEMA = {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]}
WEATHER = {"name": "weather", "description": "The weather of a place.", "input_schema": SCHEMA}
THINKS = {"thinking": {"type": "adaptive"}}
CALLS = [
    Prefill(0, 7),
    Reasoning("I ", begins=True),
    Reasoning("ask."),
    Thought(2, 0.1),
    Preamble("Let me ", begins=True),
    Preamble("look."),
    Called("call_1", "weather", '{"place": "Bermi"}'),
    stats("tool_calls", prompt=10, cached=3, sampled=9, reasoning=2),
]
ANSWERS = [Reasoning("Rain.", begins=True), Content("It ", begins=True), Content("rains."), stats()]


@pytest.fixture(scope="module")
def server():
    service = ScriptedService()
    with serving(service) as service.url:
        yield service


@pytest.fixture
def service(server):
    server.begin([Content("Hello.", begins=True), stats()])
    return server


@pytest.fixture
def client(service):
    from anthropic import Anthropic

    return Anthropic(base_url=service.url, api_key="any", max_retries=0)


def post(service, body, path="/v1/messages"):
    return httpx.post(service.url + path, json=body)


def asked(service, **fields):
    """What the service is asked for by a request with these fields."""
    response = post(service, BASIC | fields)
    assert response.status_code == 200, response.text
    return service.requests[-1]


def events_of(response):
    """The events, whose names are also in their data."""
    frames = [frame.split("\n") for frame in response.text.removesuffix("\n\n").split("\n\n")]
    events = [json.loads(data.removeprefix("data: ")) for _, data in frames]
    assert [name for name, _ in frames] == [f"event: {event['type']}" for event in events]
    return events


def test_a_message(client, service):
    service.begin([Prefill(0, 7), *ANSWERS[:-1], stats(prompt=10, cached=3, sampled=6, reasoning=2)])
    message = client.messages.create(**BASIC, **THINKS)
    assert [(block.type, getattr(block, block.type)) for block in message.content] == [
        ("thinking", "Rain."),
        ("text", "It rains."),
    ]
    assert (message.role, message.model, message.id[:4]) == ("assistant", "any", "msg_")
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    usage = message.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.cache_creation_input_tokens) == (7, 3, 0)
    assert (usage.output_tokens, usage.output_tokens_details.thinking_tokens) == (6, 2)


def test_the_events_of_a_stream(service):
    service.begin(CALLS)
    response = post(service, BASIC | THINKS | {"stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    start, *events = events_of(response)
    message = start["message"]
    assert start["type"] == "message_start"
    assert message.pop("id").startswith("msg_")
    assert message == {
        "type": "message",
        "role": "assistant",
        "model": "any",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {
            "input_tokens": 7,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 0,
        },
    }

    def block(index, start, *deltas):
        yield {"type": "content_block_start", "index": index, "content_block": start}
        yield from ({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas)
        yield {"type": "content_block_stop", "index": index}

    assert events == [
        *block(
            0,
            {"type": "thinking", "thinking": "", "signature": ""},
            {"type": "thinking_delta", "thinking": "I "},
            {"type": "thinking_delta", "thinking": "ask."},
            {"type": "signature_delta", "signature": ""},
        ),
        *block(
            1,
            {"type": "text", "text": ""},
            {"type": "text_delta", "text": "Let me "},
            {"type": "text_delta", "text": "look."},
        ),
        *block(
            2,
            {"type": "tool_use", "id": "call_1", "name": "weather", "input": {}},
            {"type": "input_json_delta", "partial_json": '{"place": "Bermi"}'},
        ),
        {
            "type": "message_delta",
            "delta": {"stop_reason": "tool_use", "stop_sequence": None, "stop_details": None},
            "usage": {
                "input_tokens": 7,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 3,
                "output_tokens": 9,
                "output_tokens_details": {"thinking_tokens": 2},
            },
        },
        {"type": "message_stop"},
    ]


@pytest.mark.parametrize(
    "script",
    [
        CALLS,
        ANSWERS,
        [stats("length")],
        [Reasoning("Hm", begins=True), stats("length")],
        [Content("One.", begins=True), Content("Two.", begins=True), stats()],
        [Called("a", "weather", ""), Called("b", "weather", '{"place":"T"}'), stats("tool_calls")],
        [Called("a", "weather", '{"place": "B'), stats("tool_calls")],
        [Content("1, 2, ", begins=True), stats(stopped_by="3")],
    ],
)
def test_the_stream_helper_builds_the_message_that_is_not_streamed(client, service, script):
    service.begin(script)
    whole = client.messages.create(**BASIC, **THINKS)
    with client.messages.stream(**BASIC, **THINKS) as stream:
        streamed = stream.get_final_message()
    assert streamed.to_dict() | {"id": ""} == whole.to_dict() | {"id": ""}


@pytest.mark.parametrize("streams", [True, False])
def test_a_loop_of_tools_gives_the_model_back_what_it_wrote(client, service, streams):
    def turn():
        if not streams:
            return client.messages.create(**BASIC | {"messages": messages}, **THINKS, tools=[WEATHER])
        with client.messages.stream(**BASIC | {"messages": messages}, **THINKS, tools=[WEATHER]) as stream:
            return stream.get_final_message()

    service.begin(CALLS, ANSWERS)
    messages = list(ASK)
    first = turn()
    call = first.content[-1]
    assert (first.stop_reason, call.name, call.input) == ("tool_use", "weather", {"place": "Bermi"})
    rain = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "rain"}]}
    messages += [{"role": "assistant", "content": first.content}, {"role": "user", "content": [rain]}]
    second = turn()
    assert second.content[-1].text == "It rains."
    conversation = service.requests[-1].conversation
    assert conversation.messages == (
        Message("user", ASK[0]["content"]),
        Message("assistant", "I ask.", "analysis"),
        Message("assistant", "Let me look.", "commentary"),
        Message("assistant", '{"place": "Bermi"}', "commentary", "functions.weather", "<|constrain|>json"),
        Message("functions.weather", "rain", "commentary", "assistant"),
    )
    assert conversation.tools == (Tool("weather", "The weather of a place.", SCHEMA),)


@pytest.mark.parametrize(
    "arguments", ['{"place": "B', "[1]", '"x"', "{1: 2}", '{"x": NaN}', '{"x": "\\ud800"}', "[" * 9999]
)
def test_arguments_that_are_no_json_object_come_back_as_they_were(client, service, arguments):
    service.begin([Called("call_1", "weather", arguments), stats("tool_calls")])
    with client.messages.stream(**BASIC, tools=[WEATHER]) as stream:
        message = stream.get_final_message()
    assert message.content[0].input == {"malformed_arguments": arguments}
    failed = {"type": "tool_result", "tool_use_id": "call_1", "content": "no place", "is_error": True}
    turns = [{"role": "assistant", "content": message.to_dict()["content"]}, {"role": "user", "content": [failed]}]
    _, call, result = asked(service, messages=ASK + turns).conversation.messages
    assert call.content == arguments
    assert result.content == "Error: no place"


def test_thinking_is_shown_to_those_who_ask(service):
    service.begin(ANSWERS)

    def kinds(**fields):
        return [block["type"] for block in post(service, BASIC | fields).json()["content"]]

    for shown in ({"type": "enabled", "budget_tokens": 2000}, {"type": "adaptive"}, {"type": "between_tools"}):
        assert kinds(thinking=shown) == ["thinking", "text"]
        assert service.requests[-1].reasons
    assert kinds() == ["text"]
    assert service.requests[-1].reasons
    assert kinds(thinking={"type": "disabled"}) == ["text"]
    assert not service.requests[-1].reasons


@pytest.mark.parametrize(
    ("end", "reason", "sequence"),
    [
        (stats(), "end_turn", None),
        (stats("length"), "max_tokens", None),
        (stats("length", repeated="the same token"), "max_tokens", None),
        (stats(stopped_by="END"), "stop_sequence", "END"),
        (stats("tool_calls"), "tool_use", None),
    ],
)
def test_why_an_answer_ends(client, service, end, reason, sequence):
    service.begin([Content("x", begins=True), end])
    message = client.messages.create(**BASIC, stop_sequences=["END"])
    assert (message.stop_reason, message.stop_sequence) == (reason, sequence)
    assert service.requests[-1].stop == ("END",)


def test_settings(service):
    request = asked(service, temperature=0.5, top_p=0.9, top_k=20, metadata={"user_id": "u1"}, max_tokens=32000)
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 20)
    assert (request.cache_key, request.max_tokens) == ("u1", 32000)
    assert asked(service).sampling == service.sampling
    schema = {"type": "json_schema", "schema": SCHEMA}
    assert asked(service, output_config={"format": schema}).conversation.response_schema == SCHEMA
    assert asked(service, output_format=schema).conversation.response_schema == SCHEMA


@pytest.mark.parametrize(
    ("fields", "effort"),
    [
        ({}, "medium"),
        *(({"output_config": {"effort": name}}, name) for name in ("low", "medium", "high")),
        *(({"output_config": {"effort": name}}, "high") for name in ("xhigh", "max")),
        *(
            ({"thinking": {"type": "enabled", "budget_tokens": budget}}, effort)
            for budget, effort in ((1024, "low"), (10_000, "medium"), (32_000, "high"))
        ),
    ],
)
def test_effort(service, fields, effort):
    assert asked(service, **fields).conversation.reasoning_effort == effort


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, ("auto", None)),
        ({"type": "auto", "disable_parallel_tool_use": True}, ("auto", None)),
        ({"type": "any"}, ("required", None)),
        ({"type": "tool", "name": "weather"}, ("required", "weather")),
        ({"type": "none"}, ("none", None)),
    ],
)
def test_tool_choice(service, choice, expected):
    request = asked(service, tools=[WEATHER], tool_choice=choice)
    assert (request.tool_choice, request.only_tool) == expected


def test_tools(service):
    request = asked(
        service,
        tools=[
            WEATHER | {"type": "custom", "strict": True, "cache_control": {"type": "ephemeral"}},
            {"type": "web_search_20250305", "name": "web_search", "max_uses": 5},
            {"name": "now", "input_schema": {"type": "object"}},
        ],
    )
    assert [tool.name for tool in request.conversation.tools] == ["weather", "now"]
    assert request.strict_tools == {"weather"}


def test_what_is_said(service):
    def text(text):
        return {"type": "text", "text": text, "cache_control": {"type": "ephemeral"}}

    def said(*messages, **fields):
        turns = [{"role": role, "content": content} for role, content in messages]
        return [
            (message.role, message.channel, message.content)
            for message in asked(service, messages=turns, **fields).conversation.messages
        ]

    assert said(("user", [text("a"), text("b")]), system=[text("Be"), text("brief.")]) == [
        ("developer", None, "Be\n\nbrief."),
        ("user", None, "a\n\nb"),
    ]
    assert said(("system", "s"), ("user", "u"), ("developer", [text("d")]), ("user", ""), ("system", "t")) == [
        ("developer", None, "s"),
        ("user", None, "u"),
        ("developer", None, "d"),
        ("user", None, ""),
        ("developer", None, "t"),
    ]
    thinking = {"type": "thinking", "thinking": "hm", "signature": "c2ln"}
    redacted = {"type": "redacted_thinking", "data": "c2VjcmV0"}
    assert said(("user", "u"), ("assistant", [redacted, thinking, text("one"), text("two")]), ("user", "v")) == [
        ("user", None, "u"),
        ("assistant", "analysis", "hm"),
        ("assistant", "commentary", "one"),
        ("assistant", "final", "two"),
        ("user", None, "v"),
    ]
    use, result = {"type": "tool_use", "id": "1", "name": "f", "input": {}}, {"type": "tool_result", "tool_use_id": "1"}
    assert said(
        ("user", "u"), ("assistant", "one"), ("assistant", [use]), ("user", [text("x"), result, text("y")])
    ) == [
        ("user", None, "u"),
        ("assistant", "commentary", "one"),
        ("assistant", "commentary", "{}"),
        ("user", None, "x"),
        ("functions.f", "commentary", ""),
        ("user", None, "y"),
    ]


def test_the_tokens_of_a_prompt(client, service):
    count = client.messages.count_tokens(
        model="any", messages=ASK, tools=[WEATHER], system="Be brief.", thinking=THINKS["thinking"]
    )
    assert count.input_tokens == asyncio.run(service.count(service.requests[-1])) > 100


def test_models(service):
    from anthropic.types import ModelInfo

    page = models_page(service)
    model = ModelInfo.model_validate(page["data"][0], strict=False)
    assert (model.id, model.max_input_tokens, model.lifecycle) == ("gpt-oss-20b", 131_072, "active")
    assert model.created_at.timestamp() == service.created
    assert (page["has_more"], page["first_id"], page["last_id"]) == (False, model.id, model.id)


def test_errors_are_the_exceptions_of_the_package(client, service):
    import anthropic

    def refused(kind, error, **fields):
        service.begin([error] if error else [stats()])
        with pytest.raises(kind) as caught:
            client.messages.create(**BASIC, extra_body=fields)
        body = caught.value.body
        assert body["type"] == "error"
        return body["error"]["type"], body["error"]["message"]

    too_long = RequestError("too long", code="context_length_exceeded")
    kind, message = refused(anthropic.BadRequestError, too_long)
    tokens = asyncio.run(service.count(service.requests[-1]))
    assert (kind, message) == ("invalid_request_error", f"prompt is too long: {tokens} tokens > 131072 maximum")
    assert refused(anthropic.BadRequestError, None, temperature=2)[0] == "invalid_request_error"
    for status, exception, kind in [
        (401, anthropic.AuthenticationError, "authentication_error"),
        (403, anthropic.PermissionDeniedError, "permission_error"),
        (404, anthropic.NotFoundError, "not_found_error"),
        (413, anthropic.APIStatusError, "request_too_large"),
        (429, anthropic.RateLimitError, "rate_limit_error"),
        (500, anthropic.InternalServerError, "api_error"),
        (503, anthropic.APIStatusError, "overloaded_error"),
    ]:
        assert refused(exception, RequestError("so", status=status)) == (kind, "so")


@pytest.mark.parametrize(
    ("error", "kind"),
    [(GptOssError("so"), "api_error"), (RequestError("so", status=503), "overloaded_error")],
)
def test_an_error_in_a_stream_is_its_last_event(client, service, error, kind):
    import anthropic

    service.begin([Content("It", begins=True), error])
    events = events_of(post(service, BASIC | {"stream": True}))
    assert events[-1] == {"type": "error", "error": {"type": kind, "message": "so"}}
    with pytest.raises(anthropic.APIStatusError) as caught, client.messages.stream(**BASIC) as stream:
        stream.get_final_message()
    assert caught.value.body["error"]["type"] == kind


def test_pings_while_a_prompt_is_read(service, monkeypatch):
    monkeypatch.setattr(sse, "KEEP_ALIVE", 0.01)
    read = asyncio.Event()

    async def until_read():
        await read.wait()
        read.clear()

    service.begin([until_read, Prefill(0, 7), until_read, Content("x", begins=True), stats()])
    names = []
    with httpx.stream("POST", service.url + "/v1/messages?beta=true", json=BASIC | {"stream": True}) as response:
        for line in response.iter_lines():
            if line.startswith("event: "):
                names.append(line.removeprefix("event: "))
            if line == "event: ping" and names.count("ping") in (2, 5):
                read._loop.call_soon_threadsafe(read.set)
    assert names[:2] == ["ping", "ping"]
    assert "ping" in names[names.index("message_start") : names.index("content_block_start")]
    assert [name for name in names if name != "ping"] == [
        "message_start",
        *("content_block_start", "content_block_delta", "content_block_stop"),
        *("message_delta", "message_stop"),
    ]


def test_a_client_that_goes_away_frees_its_place(client, service):
    service.begin([Content("x", begins=True), asyncio.Event().wait])
    with client.messages.create(**BASIC, stream=True) as stream:
        next(stream)
        assert not service.closed.is_set()
    assert service.closed.wait(10)
