"""What requests to chat completions ask for, as clients write them and as nobody should."""

import json
from itertools import product

import pytest

from gptoss_mlx.engine.sampling import Sampling
from gptoss_mlx.harmony.messages import Message, Tool
from server.asking import CALLS, CLOCK, HI, PARAMETERS, WEATHER, ask, streamed
from server.loopback import refusal


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {"reasons": True, "max_tokens": None, "stop": (), "tool_choice": "auto", "logprobs": None}),
        ({"reasoning_effort": "none"}, {"reasons": False}),
        ({"reasoning": {"effort": "none"}}, {"reasons": False}),
        ({"reasoning": {"enabled": False}}, {"reasons": False}),
        ({"max_tokens": 7}, {"max_tokens": 7}),
        ({"max_completion_tokens": 8, "max_tokens": 7}, {"max_tokens": 8}),
        ({"max_tokens": -1}, {"max_tokens": None}),
        ({"stop": "x"}, {"stop": ("x",)}),
        ({"stop": ["a", "b", "c", "d", "e"]}, {"stop": ("a", "b", "c", "d", "e")}),
        ({"temperature": 0, "seed": 3}, {"sampling": Sampling(temperature=0, seed=3)}),
        ({"logprobs": True}, {"logprobs": 0}),
        ({"logprobs": False, "top_logprobs": 0}, {"logprobs": None}),
        ({"tools": [WEATHER]}, {"tool_choice": "auto", "only_tool": None}),
        ({"tools": [WEATHER], "tool_choice": "none"}, {"tool_choice": "none"}),
        ({"tools": [WEATHER], "tool_choice": "required"}, {"tool_choice": "required", "only_tool": None}),
        (
            {"tools": [WEATHER, CLOCK], "tool_choice": {"type": "function", "function": {"name": "clock"}}},
            {"tool_choice": "required", "only_tool": "clock"},
        ),
        ({"tools": [WEATHER], "parallel_tool_calls": False}, {"tool_choice": "auto"}),
        ({"tool_choice": "auto", "tools": []}, {"tool_choice": "auto"}),
        (
            {"tools": [WEATHER, {"type": "function", "function": {"name": "f", "strict": True, "parameters": {}}}]},
            {"strict_tools": {"f"}},
        ),
        ({"prompt_cache_key": "a", "session_id": "b", "user": "c"}, {"cache_key": "a"}),
        ({"user": "c", "session_id": 3}, {"cache_key": "c"}),
    ],
)
def test_what_is_asked_for(service, client, fields, expected):
    service.begin()
    assert ask(client, **fields).status_code == 200
    (asked,) = service.requests
    assert {name: getattr(asked, name) for name in expected} == expected


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_what_a_request_leaves_open_is_the_servers(service, client, monkeypatch, path):
    service.begin()
    monkeypatch.setattr(service, "sampling", Sampling(temperature=0.3, top_k=5))
    client.post(path, json={"messages": [HI], "prompt": "Once", "top_p": 0.5})
    assert service.requests[0].sampling == Sampling(temperature=0.3, top_k=5, top_p=0.5)


@pytest.mark.parametrize(
    ("effort", "trained"),
    [("none", "low"), ("minimal", "low"), ("low", "low"), ("medium", "medium"), ("high", "high"), ("xhigh", "high")],
)
@pytest.mark.parametrize("nested", [False, True])
def test_efforts(service, client, effort, trained, nested):
    service.begin()
    ask(client, **{"reasoning": {"effort": effort, "summary": "auto"}} if nested else {"reasoning_effort": effort})
    (asked,) = service.requests
    assert (asked.conversation.reasoning_effort, asked.reasons) == (trained, effort != "none")


@pytest.mark.parametrize(
    ("form", "schema"),
    [
        (None, None),
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"type": "object"}),
        ({"type": "json_object", "schema": PARAMETERS}, PARAMETERS),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": PARAMETERS}}, PARAMETERS),
        ({"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": PARAMETERS}}, PARAMETERS),
    ],
)
def test_the_form_of_the_answer(service, client, form, schema):
    service.begin()
    ask(client, response_format=form)
    assert service.requests[0].conversation.response_schema == schema


def test_what_cannot_change_the_answer_is_passed_over(service, client):
    service.begin()
    more = {"store": False, "metadata": {"a": "b"}, "service_tier": "auto", "prediction": None, "verbosity": "low"}
    neutral = {"n": 1, "modalities": ["text"], "frequency_penalty": 0, "logit_bias": {}, "x_of_somebody": [1]}
    assert ask(client, **more, **neutral).status_code == 200


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": ["Hi"]}, "messages[0]"),
        ({"messages": [{"role": "robot", "content": "Hi"}]}, "messages[0].role"),
        ({"messages": [HI, {"role": "user"}]}, "messages[1].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0]",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0]"),
        ({"messages": [HI, {"role": "tool", "tool_call_id": "x", "content": ""}]}, "messages[1].tool_call_id"),
        ({"n": 2}, "n"),
        ({"audio": {"voice": "alloy", "format": "wav"}}, "audio"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"presence_penalty": -0.5}, "presence_penalty"),
        ({"logit_bias": {"1": 1}}, "logit_bias"),
        ({"temperature": 2.5}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": "7"}, "max_completion_tokens"),
        ({"stop": ""}, "stop"),
        ({"stop": ["x", 3]}, "stop"),
        ({"top_logprobs": 5}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"reasoning_effort": "extreme"}, "reasoning_effort"),
        ({"reasoning": {"effort": 3}}, "reasoning.effort"),
        ({"reasoning": "high"}, "reasoning"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": []}, "stream_options"),
        ({"model": 3}, "model"),
        ({"tools": {}}, "tools"),
        ({"tools": [3]}, "tools[0]"),
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0]"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "a<|end|>"}}]}, "tools"),
        ({"tools": [WEATHER], "tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "allowed_tools"}}, "tool_choice.type"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": []}}},
            "response_format.json_schema.schema",
        ),
    ],
)
def test_what_is_refused_is_named(service, client, fields, param):
    service.begin()
    status, named, message = refusal(ask(client, **fields))
    assert (status, named) == (400, param)
    assert message.startswith(param)
    assert service.requests == []


# As clients write it.

NOW_CALLED = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bermi"}'}}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "sun"}
READ = (
    Message("user", "Weather?"),
    Message("assistant", '{"city": "Bermi"}', "commentary", "functions.weather", "<|constrain|>json"),
    Message("functions.weather", "sun", "commentary", "assistant"),
)
QUESTION = {"role": "user", "content": "Weather?"}
HM = Message("assistant", "Hm.", "analysis")


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        # llm: null beside calls, and no reasoning.
        ([QUESTION, {"role": "assistant", "content": None, "tool_calls": [NOW_CALLED]}, RESULT], READ),
        # opencode and Cline: parts, and the reasoning under the name by which they read it.
        (
            [
                {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
                {"role": "assistant", "content": "", "reasoning_content": "Hm.", "tool_calls": [NOW_CALLED]},
                RESULT | {"content": [{"type": "text", "text": "s"}, {"type": "text", "text": "un"}]},
            ],
            (READ[0], HM, *READ[1:]),
        ),
        # Continue: results may be empty.
        (
            [QUESTION, {"role": "assistant", "content": "", "tool_calls": [NOW_CALLED]}, RESULT | {"content": ""}],
            (*READ[:2], Message("functions.weather", "", "commentary", "assistant")),
        ),
        # Open WebUI with Ollama's or llama.cpp's names.
        (
            [QUESTION, {"role": "assistant", "content": "", "thinking": "Hm.", "tool_calls": [NOW_CALLED]}, RESULT],
            (READ[0], HM, *READ[1:]),
        ),
        # A reply of ours as it was, with all its fields; and what a client has added.
        (
            [
                QUESTION,
                {
                    "role": "assistant",
                    "content": None,
                    "refusal": None,
                    "reasoning": "Hm.",
                    "reasoning_content": "Hm.",
                    "tool_calls": [NOW_CALLED | {"index": 0}],
                    "audio": None,
                    "provider_options": {"x": 1},
                },
                RESULT | {"name": "weather", "is_error": False},
            ],
            (READ[0], HM, *READ[1:]),
        ),
        # Arguments that are no JSON come back as the model wrote them.
        (
            [QUESTION, {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{"}}]}],
            (READ[0], Message("assistant", "{", "commentary", "functions.f", "<|constrain|>json")),
        ),
        # Instructions anywhere, in parts too; only the first are what the conversation begins with.
        (
            [
                {"role": "system", "content": [{"type": "text", "text": "Be kind."}]},
                {"role": "developer", "content": "Be brief."},
                QUESTION,
                {"role": "system", "content": "Now in verse."},
            ],
            (
                Message("developer", "Be kind."),
                Message("developer", "Be brief."),
                READ[0],
                Message("developer", "Now in verse."),
            ),
        ),
    ],
)
def test_messages_as_clients_write_them(service, client, messages, expected):
    service.begin()
    assert ask(client, messages=messages, tools=[WEATHER]).status_code == 200
    assert service.requests[0].conversation.messages == expected


def test_reasoning_that_a_client_does_not_return_is_remembered(service, client, monkeypatch):
    service.begin()
    monkeypatch.setattr(service, "thoughts", {"call_1": "I remember."})
    asked = {"role": "assistant", "content": None, "tool_calls": [NOW_CALLED]}
    for more, thought in [({}, "I remember."), ({"reasoning": ""}, "I remember."), ({"thinking": "Hm."}, "Hm.")]:
        ask(client, messages=[QUESTION, asked | more, RESULT], tools=[WEATHER])
        assert service.requests[-1].conversation.messages[1] == Message("assistant", thought, "analysis")
    other = asked | {"tool_calls": [NOW_CALLED | {"id": "call_2"}]}
    ask(client, messages=[QUESTION, other, RESULT | {"tool_call_id": "call_2"}], tools=[WEATHER])
    assert service.requests[-1].conversation.messages == READ


def test_a_namespace_of_tools(service, client):
    service.begin()
    inner = {"type": "function", "name": "read", "strict": True, "parameters": PARAMETERS}
    namespace = {"type": "namespace", "name": "fs", "description": "Files.", "tools": [inner]}
    ask(client, tools=[namespace, WEATHER], tool_choice={"type": "function", "function": {"name": "fs.read"}})
    (asked,) = service.requests
    assert asked.conversation.tools[0] == Tool("fs.read", "Files.\n", PARAMETERS)
    assert (asked.only_tool, asked.strict_tools) == ("fs.read", {"fs.read"})


def test_an_agent_of_the_size_of_opencode(service, client):
    service.begin(*CALLS)
    tools = [
        {
            "type": "function",
            "function": {
                "name": f"tool_{i}",
                "description": "What it does, at length. " * 40,
                "parameters": {
                    "$schema": "http://json-schema.org/draft-07/schema#",
                    "type": "object",
                    "properties": {"path": {"type": "string", "description": "Where."}, "n": {"type": "integer"}},
                    "required": ["path"],
                    "additionalProperties": False,
                },
            },
        }
        for i in range(25)
    ]
    messages = [{"role": "system", "content": "You are an agent. " * 500}, QUESTION]
    deltas, reason = streamed(
        client,
        model="gptoss/gpt-oss-20b",
        max_tokens=32000,
        temperature=0,
        top_p=1,
        messages=messages,
        tools=tools,
        tool_choice="auto",
        stream_options={"include_usage": True},
        reasoning_effort="medium",
    )
    assert (len(deltas), reason) == (6, "tool_calls")
    assert len(service.requests[0].conversation.tools) == 25


# What nobody means well.

HOSTILE = (
    *(None, True, False, 0, -1, 1.5, 10**30, -(10**30), 1e300, "", "x", "\ud800", "<|end|>", "\x00", "x" * 10_000),
    *([], [None], [[]], [[[[]]]], ["x", 1], [{}], {}, {"type": None}, {"type": []}, {"type": "function"}, {"name": 3}),
    *({"type": "function", "function": None}, {"type": "namespace", "tools": [{}]}, {"role": "user", "content": None}),
    *([{"role": role, "content": "x"} for role in ("tool", "assistant", None, [])], [{"type": "text", "text": 3}]),
)
FULL = {
    "model": "m",
    "messages": [
        {"role": "system", "content": "Be kind.", "name": "x"},
        {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
        {"role": "assistant", "content": None, "reasoning": "Hm.", "reasoning_details": [], "tool_calls": [NOW_CALLED]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sun"},
    ],
    "tools": [WEATHER | {"strict": True}, {"type": "namespace", "name": "n", "description": "", "tools": [CLOCK]}],
    "functions": [CLOCK["function"]],
    "function_call": "auto",
    "tool_choice": {"type": "function", "function": {"name": "weather"}},
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": PARAMETERS}},
    "reasoning": {"effort": "low", "enabled": True},
    "reasoning_effort": "low",
    "stream": True,
    "stream_options": {"include_usage": True},
    "logprobs": True,
    "top_logprobs": 2,
    "max_tokens": 5,
    "max_completion_tokens": 5,
    "stop": ["x"],
    "seed": 1,
    "temperature": 1,
    "top_p": 1,
    "top_k": 1,
    "min_p": 0.5,
    "repetition_penalty": 1,
    "repeat_penalty": 1,
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "logit_bias": {},
    "n": 1,
    "modalities": ["text"],
    "prompt_cache_key": "a",
    "session_id": "a",
    "user": "a",
    "parallel_tool_calls": True,
    "metadata": {},
}


def places(value, path=()):
    """Every place in a JSON value."""
    if path:
        yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*path, key))


def with_at(value, path, new):
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = with_at(copy[path[0]], path[1:], new)
    return copy


@pytest.mark.parametrize("step", [11, pytest.param(1, marks=pytest.mark.slow)])
def test_wrong_types_anywhere_are_refused_in_words(service, client, step):
    service.begin()
    assert client.post("/v1/chat/completions", json=FULL).status_code == 200
    outcomes = set()
    for path, value in list(product(places(FULL), HOSTILE))[::step]:
        response = client.post("/v1/chat/completions", content=json.dumps(with_at(FULL, path, value)))
        assert response.status_code in (200, 400), (path, value, response.text)
        if response.status_code == 400:
            assert refusal(response)[1], (path, value)
        outcomes.add(response.status_code)
    assert outcomes == {200, 400}


def test_half_of_a_character_does_no_harm(service, client):
    service.begin()
    response = client.post(
        "/v1/chat/completions", content=b'{"model":"\\ud83d","messages":[{"role":"user","content":"a\\udc00"}]}'
    )
    assert response.json()["model"] == "\ufffd"
    assert service.requests[0].conversation.messages == (Message("user", "a\ufffd"),)


DEEP = {
    "parameters": {"messages": [HI], "tools": [{"function": {"name": "f", "parameters": "DEEP"}}]},
    "schema": {"messages": [HI], "response_format": {"type": "json_object", "schema": "DEEP"}},
    "arguments": {
        "messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "DEEP"}}]}]
    },
    "content": {"messages": [{"role": "user", "content": "DEEP"}]},
}


@pytest.mark.parametrize("place", DEEP)
@pytest.mark.parametrize("depth", [50, 500, 100_000])
def test_what_is_nested_deeply(service, client, place, depth):
    service.begin()
    content = json.dumps(DEEP[place]).replace('"DEEP"', '{"a":' * depth + "{}" + "}" * depth)
    response = client.post("/v1/chat/completions", content=content)
    assert response.status_code == (200 if depth == 50 and place != "content" else 400), response.text
