"""The fields of a request for a response: what they mean, what is refused by name, what hostile ones do."""

import json

import pytest

from gptoss_mlx.server.bodies import json_object
from gptoss_mlx.server.errors import RequestError
from gptoss_mlx.server.fields import Fields
from gptoss_mlx.server.response_events import ResponseWriter
from gptoss_mlx.server.response_request import read_request
from gptoss_mlx.server.response_store import ResponseStore
from server.loopback import refusal
from server.responding import COMMAND, answer, ask, call_item, output_item, reasoning_item, said, text_message

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
MEANINGS = [
    (
        {"temperature": 0, "top_p": 0.5, "seed": 3},
        lambda asked: asked.sampling.temperature == 0 and asked.sampling.seed == 3,
    ),
    ({"max_output_tokens": 7}, lambda asked: asked.max_tokens == 7),
    ({"prompt_cache_key": "k"}, lambda asked: asked.cache_key == "k"),
    ({"reasoning": {"effort": "none"}}, lambda asked: not asked.reasons),
    (
        {"reasoning": {"effort": "minimal"}},
        lambda asked: asked.conversation.reasoning_effort == "low" and asked.reasons,
    ),
    ({"reasoning": {"effort": "high"}}, lambda asked: asked.conversation.reasoning_effort == "high"),
    (
        {"reasoning": {"summary": "auto"}},
        lambda asked: asked.conversation.reasoning_effort == "medium" and asked.reasons,
    ),
    (
        {"text": {"format": {"type": "text"}, "verbosity": "low"}},
        lambda asked: asked.conversation.response_schema is None,
    ),
    (
        {"text": {"format": {"type": "json_object"}}},
        lambda asked: asked.conversation.response_schema == {"type": "object"},
    ),
    (
        {"text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True}}},
        lambda asked: asked.conversation.response_schema == SCHEMA,
    ),
    ({"truncation": "auto", "user": "u", "service_tier": "flex", "never_heard_of": 1}, lambda asked: True),
    ({"background": False, "conversation": None, "prompt": None}, lambda asked: True),
]


@pytest.mark.parametrize(("fields", "holds"), MEANINGS)
def test_fields(client, service, of_openai, fields, holds):
    service.begin()
    of_openai["response"].validate_python(answer(client, **fields))
    assert holds(service.requests[-1])


def test_a_response_says_what_was_asked_for(client, service):
    fields = {
        "model": "any-name",
        "instructions": "Be brief.",
        "metadata": {"a": "b"},
        "tools": [COMMAND, {"type": "web_search"}],
        "tool_choice": "none",
        "parallel_tool_calls": False,
        "reasoning": {"effort": "low", "summary": "auto"},
        "text": {"format": {"type": "json_object"}},
        "temperature": 0.5,
        "max_output_tokens": 9,
        "store": False,
    }
    reply = answer(client, **fields)
    assert {name: reply[name] for name in fields} == fields
    assert answer(client)["model"] == service.model_name


REFUSED = [
    ("input", {"input": None}),
    ("background", {"background": True}),
    ("conversation", {"conversation": "conv_1"}),
    ("prompt", {"prompt": {"id": "pmpt_1"}}),
    ("tool_choice", {"tool_choice": "required"}),
    ("tool_choice", {"tool_choice": "sometimes"}),
    ("tool_choice.name", {"tool_choice": {"type": "function", "name": "f"}}),
    ("tool_choice.type", {"tool_choice": {"type": "file_search"}}),
    ("reasoning.effort", {"reasoning": {"effort": "extreme"}}),
    ("text.format.type", {"text": {"format": {"type": "xml"}}}),
    ("text.format.schema", {"text": {"format": {"type": "json_schema"}}}),
    ("max_output_tokens", {"max_output_tokens": 0}),
    ("temperature", {"temperature": 9}),
    ("frequency_penalty", {"frequency_penalty": 1}),
    ("metadata.a", {"metadata": {"a": 1}}),
    ("truncation", {"truncation": "some"}),
    ("tools[0].name", {"tools": [{"type": "function"}]}),
    ("tools[0].name", {"tools": [{"type": "function", "name": "a b"}]}),
    ("tools[0].type", {"tools": [{"name": "f"}]}),
    ("input[0].role", {"input": [{"role": "tool", "content": "x"}]}),
    ("input[1].content", {"input": [{"role": "user", "content": "x"}, {"role": "user", "content": 3}]}),
    ("input[0]", {"input": ["x"]}),
    ("input[0]", {"input": [{}]}),
    ("input[0].call_id", {"input": [{"type": "function_call_output", "output": "x"}]}),
    ("input[0].id", {"input": [{"type": "item_reference", "id": "msg_0"}]}),
]


@pytest.mark.parametrize(("param", "fields"), REFUSED)
def test_what_is_refused_by_name(client, param, fields):
    status, named, message = refusal(ask(client, **fields))
    assert (status, named) == (400, param)
    assert message.startswith(param.split(".")[0].split("[")[0])


HOSTILE = [
    *(None, True, 0, -1, 1.5, 10**30, -(10**30), "", "x", "\ud800", "\x00<|end|>", "a" * 5000),
    *([], {}, [None], [[]], [{}], {"type": {}}, {"type": "message", "role": []}, {"": ""}),
]


def places(value, path=()):
    """Every place of a value within a request."""
    if path:
        yield path
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, each in pairs:
        yield from places(each, (*path, name))


def replaced(value, path, by):
    if not path:
        return by
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], by)
    return copy


WHOLE = {
    "model": "m",
    "instructions": "i",
    "previous_response_id": None,
    "input": [
        text_message("user", "x"),
        reasoning_item("x"),
        call_item("f", "{}", namespace="n"),
        output_item([{"type": "input_text", "text": "x"}]),
        {"type": "custom_tool_call", "call_id": "c", "name": "p", "input": "x"},
    ],
    "tools": [
        {"type": "function", "name": "f", "description": "d", "parameters": SCHEMA, "strict": True},
        {"type": "namespace", "name": "n", "description": "d", "tools": [{"type": "function", "name": "f"}]},
        {"type": "custom", "name": "p", "format": {"type": "grammar", "syntax": "lark", "definition": "x"}},
        {"type": "web_search"},
    ],
    "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]},
    "text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}, "verbosity": "low"},
    "reasoning": {"effort": "low", "summary": "auto"},
    "include": ["reasoning.encrypted_content"],
    "metadata": {"a": "b"},
    "stream": False,
    "store": True,
    "background": False,
    "parallel_tool_calls": True,
    "truncation": "auto",
    "temperature": 1,
    "top_p": 1,
    "top_logprobs": 1,
    "max_output_tokens": 5,
    "prompt_cache_key": "k",
}


def over_http(client, service, body):
    response = client.post("/v1/responses", content=body, headers={"content-type": "application/json"})
    return None if response.status_code == 200 else refusal(response)[0]


def read_alone(client, service, body):
    try:
        asked = read_request(Fields(json_object(body)), ResponseStore(), service)
    except RequestError as error:
        return error.status
    assert list(ResponseWriter(asked).begin())
    return None


@pytest.mark.parametrize("sent", [read_alone, pytest.param(over_http, marks=pytest.mark.slow)])
def test_hostile_values_at_every_place(client, service, sent):
    """Each is an answer or a refusal, never an error of the server."""
    service.begin(*said("Yes."))
    replies = [
        sent(client, service, json.dumps(replaced(WHOLE, path, value)).encode())
        for path in places(WHOLE)
        for value in HOSTILE
    ]
    assert set(replies) == {None, 400}
    assert replies.count(400) > 500


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'"x"', b"[" * 100_000, b'{"input": ' + b"[" * 9000 + b"]" * 9000 + b"}"]
)
def test_bodies_that_are_no_request(client, body):
    assert refusal(client.post("/v1/responses", content=body))[0] == 400
