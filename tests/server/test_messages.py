"""Anthropic's Messages API: its own package talks to a real server, and requests have the shapes of real clients'."""

import json
import threading

import pytest

from gptoss_mlx.chat.request import Called
from gptoss_mlx.chat.turn import Prefill, Thought
from gptoss_mlx.errors import GptOssError
from gptoss_mlx.harmony.messages import Message, Tool
from gptoss_mlx.harmony.parse import Content, Preamble, Reasoning
from gptoss_mlx.server import sse
from gptoss_mlx.server.errors import RequestError
from server.loopback import begins, stats
from server.messaging import ASK, BASIC, SCHEMA, WEATHER

THINKS = {"thinking": {"type": "adaptive"}}
CALLS = [
    Prefill(0, 7),
    begins(Reasoning, "I "),
    Reasoning("ask."),
    Thought(2, 0.1),
    begins(Preamble, "Let me "),
    Preamble("look."),
    Called("call_1", "weather", '{"place": "Bermi"}'),
    stats("tool_calls", prompt=10, cached=3, sampled=9, reasoning=2),
]
ANSWERS = [begins(Reasoning, "Rain."), begins(Content, "It "), Content("rains."), stats()]


@pytest.fixture(autouse=True)
def begun(service):
    service.begin()


@pytest.fixture(scope="module")
def package(url):
    from anthropic import Anthropic

    with Anthropic(base_url=url, api_key="any", max_retries=0) as client:
        yield client


def post(client, body):
    return client.post("/v1/messages", json=body)


def said(client, service, messages):
    """The messages of a conversation as the model gets them."""
    assert post(client, BASIC | {"messages": messages}).status_code == 200
    return service.requests[-1].conversation.messages


def events_of(response):
    """The events, whose names are also in their data."""
    frames = [frame.split("\n") for frame in response.text.removesuffix("\n\n").split("\n\n")]
    events = [json.loads(data.removeprefix("data: ")) for _, data in frames]
    assert [name for name, _ in frames] == [f"event: {event['type']}" for event in events]
    return events


def test_a_message(package, service):
    service.begin(Prefill(0, 7), *ANSWERS[:-1], stats(prompt=10, cached=3, sampled=6, reasoning=2))
    message = package.messages.create(**BASIC, **THINKS)
    assert [(block.type, getattr(block, block.type)) for block in message.content] == [
        ("thinking", "Rain."),
        ("text", "It rains."),
    ]
    assert (message.role, message.model, message.id[:4]) == ("assistant", "any", "msg_")
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    usage = message.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.cache_creation_input_tokens) == (7, 3, 0)
    assert (usage.output_tokens, usage.output_tokens_details.thinking_tokens) == (6, 2)


def test_the_events_of_a_stream(client, service):
    service.begin(*CALLS)
    response = post(client, BASIC | THINKS | {"stream": True})
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
        [begins(Reasoning, "Hm"), stats("length")],
        [begins(Content, "One."), begins(Content, "Two."), stats()],
        [Called("a", "weather", ""), Called("b", "weather", '{"place":"T"}'), stats("tool_calls")],
        [Called("a", "weather", '{"place": "B'), stats("tool_calls")],
        [begins(Content, "1, 2, "), stats(stopped_by="3")],
    ],
)
def test_the_stream_helper_builds_the_message_that_is_not_streamed(package, service, script):
    service.begin(*script)
    whole = package.messages.create(**BASIC, **THINKS)
    with package.messages.stream(**BASIC, **THINKS) as stream:
        streamed = stream.get_final_message()
    assert streamed.to_dict() | {"id": ""} == whole.to_dict() | {"id": ""}


@pytest.mark.parametrize("streams", [True, False])
def test_a_loop_of_tools_gives_the_model_back_what_it_wrote(package, service, streams):
    def turn():
        if not streams:
            return package.messages.create(**BASIC | {"messages": messages}, **THINKS, tools=[WEATHER])
        with package.messages.stream(**BASIC | {"messages": messages}, **THINKS, tools=[WEATHER]) as stream:
            return stream.get_final_message()

    service.begin(*CALLS)
    messages = list(ASK)
    first = turn()
    call = first.content[-1]
    assert (first.stop_reason, call.name, call.input) == ("tool_use", "weather", {"place": "Bermi"})
    rain = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "rain"}]}
    messages += [{"role": "assistant", "content": first.content}, {"role": "user", "content": [rain]}]
    service.begin(*ANSWERS)
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
def test_arguments_that_are_no_json_object_come_back_as_they_were(client, package, service, arguments):
    service.begin(Called("call_1", "weather", arguments), stats("tool_calls"))
    with package.messages.stream(**BASIC, tools=[WEATHER]) as stream:
        message = stream.get_final_message()
    assert message.content[0].input == {"malformed_arguments": arguments}
    failed = {"type": "tool_result", "tool_use_id": "call_1", "content": "no place", "is_error": True}
    turns = [{"role": "assistant", "content": message.to_dict()["content"]}, {"role": "user", "content": [failed]}]
    _, call, result = said(client, service, ASK + turns)
    assert call.content == arguments
    assert result.content == "Error: no place"


def test_thinking_is_shown_to_those_who_ask(client, service):
    service.begin(*ANSWERS)

    def kinds(**fields):
        return [block["type"] for block in post(client, BASIC | fields).json()["content"]]

    for shown in ({"type": "enabled", "budget_tokens": 2000}, {"type": "adaptive"}, {"type": "between_tools"}):
        assert kinds(thinking=shown) == ["thinking", "text"]
        assert service.requests[-1].reasons
    assert kinds() == ["text"]
    assert service.requests[-1].reasons
    assert kinds(thinking={"type": "disabled"}) == ["text"]
    assert not service.requests[-1].reasons


def test_one_call_at_a_time(package, service):
    service.begin(Called("a", "weather", "{}"), Called("b", "weather", "{}"), stats("tool_calls"))

    def calls(**choice):
        message = package.messages.create(**BASIC, tools=[WEATHER], tool_choice={"type": "auto"} | choice)
        assert message.stop_reason == "tool_use"
        return [block.id for block in message.content]

    assert calls() == ["a", "b"]
    assert calls(disable_parallel_tool_use=True) == ["a"]


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
def test_why_an_answer_ends(package, service, end, reason, sequence):
    service.begin(begins(Content, "x"), end)
    message = package.messages.create(**BASIC, stop_sequences=["END"])
    assert (message.stop_reason, message.stop_sequence) == (reason, sequence)
    assert service.requests[-1].stop == ("END",)


def test_the_tokens_of_a_prompt(package, service):
    count = package.messages.count_tokens(
        model="any", messages=ASK, tools=[WEATHER], system="Be brief.", thinking=THINKS["thinking"]
    )
    assert count.input_tokens == len(service.prompts[-1]) > 100


def test_models(package, service):
    (model,) = package.models.list()
    assert (model.type, model.id, model.lifecycle) == ("model", "gpt-oss-20b", "active")
    assert (model.max_input_tokens, model.max_tokens) == (131_072, 131_072)
    assert model.created_at.timestamp() == service.created
    assert package.models.retrieve("gpt-oss-20b") == model


def test_errors_are_the_exceptions_of_the_package(package, service):
    import anthropic

    def refused(kind, error, **fields):
        service.begin(error or stats())
        with pytest.raises(kind) as caught:
            package.messages.create(**BASIC, extra_body=fields)
        body = caught.value.body
        assert body["type"] == "error"
        return body["error"]["type"], body["error"]["message"]

    too_long = RequestError("too long", code="context_length_exceeded")
    kind, message = refused(anthropic.BadRequestError, too_long)
    tokens = len(service.prompts[-1])
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
def test_an_error_in_a_stream_is_its_last_event(client, package, service, error, kind):
    import anthropic

    service.begin(begins(Content, "It"), error)
    events = events_of(post(client, BASIC | {"stream": True}))
    assert events[-1] == {"type": "error", "error": {"type": kind, "message": "so"}}
    with pytest.raises(anthropic.APIStatusError) as caught, package.messages.stream(**BASIC) as stream:
        stream.get_final_message()
    assert caught.value.body["error"]["type"] == kind


def test_pings_while_a_prompt_is_read(client, service, monkeypatch):
    monkeypatch.setattr(sse, "KEEP_ALIVE", 0.01)
    waits = [threading.Event(), threading.Event()]
    service.begin(waits[0].wait, Prefill(0, 7), waits[1].wait, begins(Content, "x"), stats())
    names = []
    with client.stream("POST", "/v1/messages?beta=true", json=BASIC | {"stream": True}) as response:
        for line in response.iter_lines():
            if line.startswith("event: "):
                names.append(line.removeprefix("event: "))
            if names.count("ping") == 2:
                waits[0].set()
            if names[-1:] == ["ping"] and "message_start" in names:
                waits[1].set()
    assert names[:2] == ["ping", "ping"]
    assert "ping" in names[names.index("message_start") : names.index("content_block_start")]
    assert [name for name in names if name != "ping"] == [
        "message_start",
        *("content_block_start", "content_block_delta", "content_block_stop"),
        *("message_delta", "message_stop"),
    ]


def test_a_client_that_goes_away_frees_its_place(package, service):
    waits = threading.Event()
    service.begin(begins(Content, "x"), waits.wait)
    with package.messages.create(**BASIC, stream=True) as stream:
        next(stream)
        assert not service.closed.is_set()
    try:
        assert service.closed.wait(10)
    finally:
        waits.set()


def a_coding_agent(session, *turns):
    """A request of the shape and size of Claude Code's, in other words."""
    words = "Work in small steps, read before you write, and say what you did. "
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {
            "file_path": {"type": "string", "description": words},
            "limit": {"type": "integer", "exclusiveMinimum": 0},
            "mode": {"type": "string", "enum": ["all", "some"], "default": "all"},
            "edits": {"type": "array", "items": {"type": "object", "properties": {"old": {"type": "string"}}}},
            "where": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        },
        "required": ["file_path"],
        "additionalProperties": False,
    }
    text = {"type": "text", "cache_control": {"type": "ephemeral"}}
    return {
        "model": "gpt-oss-20b",
        "max_tokens": 32000,
        "system": [
            {"type": "text", "text": f"x-anthropic-billing-header: cc_version=2.1.{session}; cc_entrypoint=cli;"},
            text | {"text": "You help with software."},
            text | {"text": words * 150},
        ],
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": f"<system-reminder>\n{words * 20}\n</system-reminder>\n"},
                    text | {"text": "create made.txt with hi"},
                ],
            },
            {"role": "system", "content": words * 60},
            *turns,
        ],
        "tools": [
            {"name": f"Tool{i}" if i else "Write", "description": words * 30, "input_schema": schema} for i in range(24)
        ],
        "metadata": {"user_id": json.dumps({"device_id": "d", "account_uuid": "", "session_id": session})},
        "thinking": {"type": "adaptive", "display": "omitted"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "output_config": {"effort": "high"},
        "stream": True,
    }


def test_the_requests_of_a_coding_agent(client, service):
    service.begin(Reasoning("I write."), Called("call_1", "Write", '{"file_path": "made.txt"}'), stats("tool_calls"))
    body = a_coding_agent("a1")
    assert 70_000 < len(json.dumps(body)) < 82_000
    headers = {"anthropic-version": "2023-06-01", "anthropic-beta": "context-management-2025-06-27,effort-2025-11-24"}
    response = client.post("/v1/messages?beta=true", json=body, headers=headers)
    blocks = [event["content_block"] for event in events_of(response) if event["type"] == "content_block_start"]
    assert [block["type"] for block in blocks] == ["thinking", "tool_use"]
    first = service.requests[-1]
    assert (first.conversation.reasoning_effort, len(first.conversation.tools), first.max_tokens) == ("high", 24, 32000)
    assert [message.role for message in first.conversation.messages] == ["developer", "user", "developer"]

    turns = [
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "I write.", "signature": ""},
                {"type": "tool_use", "id": "call_1", "name": "Write", "input": {"file_path": "made.txt"}},
            ],
        },
        {"role": "user", "content": [{"tool_use_id": "call_1", "type": "tool_result", "content": "done"}]},
    ]
    # Another session of the same client, too: all that it says before is said again word for word.
    post(client, a_coding_agent("b2", *turns))
    second = service.requests[-1]
    assert second.conversation.messages[:3] == first.conversation.messages
    assert [message.channel for message in second.conversation.messages[3:]] == ["analysis", *["commentary"] * 2]
    assert second.cache_key != first.cache_key


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        None,
        BASIC | {"max_tokens": None},
        BASIC | {"model": 5},
        BASIC | {"model": ["x"]},
        BASIC | {"stream": "yes"},
        BASIC | {"stream": True, "messages": 1},
    ],
)
def test_bodies_that_are_no_requests(client, service, body):
    response = post(client, body)
    assert (response.status_code, response.json()["error"]["type"]) == (400, "invalid_request_error")
    assert not service.requests
