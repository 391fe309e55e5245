"""Chat completions: replies and chunks, to the letter and as OpenAI's own package reads them."""

import math
import threading

import pytest

from gptoss_mlx.chat.request import Called, TokenLogprobs
from gptoss_mlx.chat.turn import Prefill
from gptoss_mlx.errors import GptOssError
from gptoss_mlx.harmony.messages import Message
from gptoss_mlx.harmony.parse import Content, Preamble, Reasoning
from gptoss_mlx.server import sse
from gptoss_mlx.server.errors import RequestError
from server.asking import ANSWER, CALL, CALLS, CLOCK, HI, THOUGHT, WEATHER, ask, choice_of, streamed
from server.loopback import begins, frames, stats

QUESTION = {"role": "user", "content": "Weather?"}
USAGE = {
    "prompt_tokens": 10,
    "completion_tokens": 5,
    "total_tokens": 15,
    "prompt_tokens_details": {"cached_tokens": 4},
    "completion_tokens_details": {"reasoning_tokens": 2},
}


def test_a_reply(service, client):
    service.begin(*ANSWER)
    reply = ask(client, model="any-name").json()
    assert reply.pop("id").startswith("chatcmpl-")
    assert isinstance(reply.pop("created"), int)
    assert reply == {
        "object": "chat.completion",
        "model": "any-name",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "Hello.",
                    "refusal": None,
                    "reasoning": "Hm.",
                    "reasoning_content": "Hm.",
                },
                "finish_reason": "stop",
                "logprobs": None,
            }
        ],
        "usage": USAGE,
    }
    assert ask(client).json()["model"] == "gpt-oss-20b"


def test_a_stream(service, client):
    service.begin(*ANSWER)
    assert streamed(client) == (
        [
            {"role": "assistant", "content": ""},
            {"reasoning": "Hm", "reasoning_content": "Hm"},
            {"reasoning": ".", "reasoning_content": "."},
            {"content": "Hel"},
            {"content": "lo."},
            {},
        ],
        "stop",
    )


def test_a_call_in_a_reply_and_in_a_stream(service, client):
    service.begin(*CALLS)
    function = {"name": "weather", "arguments": '{"city": "Bermi"}'}
    call = {"id": "call_1", "type": "function", "function": function}
    choice = choice_of(ask(client, tools=[WEATHER]))
    assert choice["finish_reason"] == "tool_calls"
    assert (choice["message"]["content"], choice["message"]["tool_calls"]) == ("I look.", [call])
    deltas, reason = streamed(client, tools=[WEATHER])
    assert deltas[3:] == [{"content": "I look."}, {"tool_calls": [{"index": 0} | call]}, {}]
    assert reason == "tool_calls"
    service.begin(CALL, Called("call_2", "clock", "{}"), stats("tool_calls"))
    message = choice_of(ask(client, tools=[WEATHER, CLOCK]))["message"]
    assert message["content"] is None
    assert [each["id"] for each in message["tool_calls"]] == ["call_1", "call_2"]
    deltas, _ = streamed(client, tools=[WEATHER, CLOCK])
    assert [delta["tool_calls"][0]["index"] for delta in deltas if "tool_calls" in delta] == [0, 1]


def test_calls_as_they_once_were(service, client):
    service.begin(*CALLS)
    function = {"name": "weather", "arguments": '{"city": "Bermi"}'}
    choice = choice_of(ask(client, functions=[WEATHER["function"]], function_call={"name": "weather"}))
    assert (choice["message"]["function_call"], choice["finish_reason"]) == (function, "function_call")
    assert "tool_calls" not in choice["message"]
    deltas, reason = streamed(client, functions=[WEATHER["function"]])
    assert (deltas[-2], reason) == ({"function_call": function}, "function_call")
    assert service.requests[0].only_tool == "weather"
    asked = {"role": "assistant", "content": None, "function_call": function}
    ask(client, messages=[HI, asked, {"role": "function", "name": "weather", "content": "sun"}])
    assert service.prompts[-1].endswith(
        '<|start|>assistant to=functions.weather<|channel|>commentary <|constrain|>json<|message|>{"city": "Bermi"}'
        "<|call|><|start|>functions.weather to=assistant<|channel|>commentary<|message|>sun<|end|><|start|>assistant"
    )


def test_several_messages_are_set_apart(service, client):
    service.begin(
        begins(Reasoning, "One."), begins(Preamble, "So."), begins(Reasoning, "Two."), begins(Content, "Hi."), stats()
    )
    message = choice_of(ask(client))["message"]
    assert (message["content"], message["reasoning"]) == ("So.\n\nHi.", "One.\n\nTwo.")
    deltas, _ = streamed(client)
    assert "".join(delta.get("content", "") for delta in deltas) == "So.\n\nHi."
    assert "".join(delta.get("reasoning", "") for delta in deltas) == "One.\n\nTwo."


def test_an_answer_that_broke_off(service, client):
    service.begin(*THOUGHT, stats("length"))
    choice = choice_of(ask(client, max_tokens=5))
    assert (choice["message"]["content"], choice["finish_reason"]) == ("", "length")
    assert streamed(client, max_tokens=5)[1] == "length"


def test_usage_is_streamed_where_it_is_asked_for(service, client):
    service.begin(*ANSWER)
    *chunks, last, _ = frames(ask(client, stream=True, stream_options={"include_usage": True}))
    assert (last["choices"], last["usage"]) == ([], USAGE)
    assert all(chunk["usage"] is None and chunk["choices"] for chunk in chunks)
    for options in ({}, {"include_usage": False}, None):
        assert all("usage" not in chunk for chunk in frames(ask(client, stream=True, stream_options=options)))


def test_log_probabilities(service, client):
    half = "é".encode()[:1]
    service.begin(
        *THOUGHT,
        begins(Content, "H"),
        TokenLogprobs(b"H", -0.5, ((b"H", -0.5), (b"h", -1.5))),
        TokenLogprobs(half, -math.inf, ((half, -math.inf),)),
        Content("é"),
        TokenLogprobs(b"\xa9", -0.25, ()),
        stats(),
    )
    expected = [
        {
            "token": "H",
            "logprob": -0.5,
            "bytes": [72],
            "top_logprobs": [
                {"token": "H", "logprob": -0.5, "bytes": [72]},
                {"token": "h", "logprob": -1.5, "bytes": [104]},
            ],
        },
        {
            "token": "\ufffd",
            "logprob": -9999.0,
            "bytes": [195],
            "top_logprobs": [{"token": "\ufffd", "logprob": -9999.0, "bytes": [195]}],
        },
        {"token": "\ufffd", "logprob": -0.25, "bytes": [169], "top_logprobs": []},
    ]
    choice = choice_of(ask(client, logprobs=True, top_logprobs=2))
    assert choice["logprobs"] == {"content": expected, "refusal": None}
    chunks = frames(ask(client, stream=True, logprobs=True, top_logprobs=2))[:-1]
    told = [(chunk["choices"][0]["delta"], chunk["choices"][0]["logprobs"]) for chunk in chunks]
    assert [(delta["content"], logprobs["content"]) for delta, logprobs in told if logprobs] == [
        ("H", expected[:1]),
        ("", expected[1:2]),
        ("é", expected[2:]),
    ]
    assert [request.logprobs for request in service.requests] == [2, 2]


# OpenAI's own package.


def test_openai_creates_and_streams(service, openai):
    service.begin(*ANSWER)
    asked = {"model": "m", "messages": [HI]}
    reply = openai.chat.completions.create(**asked)
    assert (reply.choices[0].message.content, reply.choices[0].message.reasoning_content) == ("Hello.", "Hm.")
    assert reply.usage.completion_tokens_details.reasoning_tokens == 2
    assert reply.usage.prompt_tokens_details.cached_tokens == 4
    chunks = list(openai.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == "Hello."
    assert (chunks[-1].choices, chunks[-1].usage.total_tokens) == ([], 15)
    with openai.chat.completions.stream(**asked) as stream:
        kinds = [event.type for event in stream]
        assert stream.get_final_completion().choices[0].message.content == "Hello."
    assert [kind for kind in kinds if kind != "chunk"] == ["content.delta"] * 3 + ["content.done"]  # the first is empty


def test_openai_goes_through_a_tool_loop(service, openai):
    service.begin(*CALLS)
    messages = [QUESTION]
    for streams in (False, True):
        if streams:
            with openai.chat.completions.stream(model="m", messages=messages, tools=[WEATHER]) as stream:
                done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
                message = stream.get_final_completion().choices[0].message
            assert [(event.name, event.index) for event in done] == [("weather", 0)]
        else:
            message = openai.chat.completions.create(model="m", messages=messages, tools=[WEATHER]).choices[0].message
        assert message.content == "I look."
        (call,) = message.tool_calls
        assert (call.id, call.function.name, call.function.arguments) == ("call_1", "weather", '{"city": "Bermi"}')
        messages += [message, {"role": "tool", "tool_call_id": call.id, "content": "sun"}]
    service.begin(*ANSWER)
    openai.chat.completions.create(model="m", messages=messages, tools=[WEATHER])
    said = service.requests[0].conversation.messages
    once = (
        Message("assistant", "Hm.", "analysis"),
        Message("assistant", "I look.", "commentary"),
        Message("assistant", '{"city": "Bermi"}', "commentary", "functions.weather", "<|constrain|>json"),
        Message("functions.weather", "sun", "commentary", "assistant"),
    )
    assert said == (Message("user", "Weather?"), *once, *once)


def test_openai_reads_over_chunks_that_only_keep_a_stream_alive(service, openai, monkeypatch):
    monkeypatch.setattr(sse, "KEEP_ALIVE", 0.02)
    seen, empty = threading.Event(), 0
    service.begin(Prefill(0, 9), lambda: seen.wait(60), *ANSWER)
    with openai.chat.completions.stream(model="m", messages=[HI]) as stream:
        for event in stream:
            if event.type == "chunk" and event.chunk.choices[0].delta.content is None:
                empty += 1
                if empty == 3:
                    seen.set()
        assert stream.get_final_completion().choices[0].message.content == "Hello."


def test_openai_parses_structured_outputs(service, openai):
    from openai import pydantic_function_tool
    from pydantic import BaseModel

    class Person(BaseModel):
        name: str
        age: int

    service.begin(*THOUGHT, begins(Content, '{"name": "Ann",'), Content(' "age": 3}'), stats())
    asked = {"model": "m", "messages": [HI]}
    parsed = openai.chat.completions.parse(**asked, response_format=Person)
    assert parsed.choices[0].message.parsed == Person(name="Ann", age=3)
    assert service.requests[0].conversation.response_schema["properties"].keys() == {"name", "age"}
    with openai.chat.completions.stream(**asked, response_format=Person) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == Person(name="Ann", age=3)
    service.begin(Called("call_1", "Person", '{"name": "Ann", "age": 3}'), stats("tool_calls"))
    parsed = openai.chat.completions.parse(**asked, tools=[pydantic_function_tool(Person)])
    assert parsed.choices[0].message.tool_calls[0].function.parsed_arguments == Person(name="Ann", age=3)
    assert service.requests[0].strict_tools == {"Person"}


def test_openai_raises_what_is_wrong(service, openai):
    from openai import APIError, BadRequestError, InternalServerError, LengthFinishReasonError
    from pydantic import BaseModel

    class Empty(BaseModel):
        pass

    asked = {"model": "m", "messages": [HI]}
    service.begin(RequestError("too long", code="context_length_exceeded", param="messages"))
    for streams in (False, True):
        with pytest.raises(BadRequestError) as error:
            openai.chat.completions.create(**asked, stream=streams)
        assert (error.value.code, error.value.param) == ("context_length_exceeded", "messages")
        assert error.value.type == "invalid_request_error"
    with pytest.raises(BadRequestError, match="n is not supported"):
        openai.chat.completions.create(**asked, n=2)
    service.begin(GptOssError("out of memory"))
    with pytest.raises(InternalServerError, match="out of memory"):
        openai.chat.completions.create(**asked)
    service.begin(Content("Hi"), GptOssError("out of memory"))
    with pytest.raises(APIError, match="out of memory"):
        list(openai.chat.completions.create(**asked, stream=True))
    service.begin(Content("{"), stats("length"))
    with pytest.raises(LengthFinishReasonError):
        openai.chat.completions.parse(**asked, response_format=Empty)
