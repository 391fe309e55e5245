"""Completions of a bare prompt: replies, chunks, prompts in all their forms, and OpenAI's own package."""

import math

import pytest

from gptoss_mlx.chat.request import TokenLogprobs
from gptoss_mlx.chat.turn import Prefill
from gptoss_mlx.engine.sampling import Sampling
from gptoss_mlx.errors import GptOssError
from gptoss_mlx.harmony.parse import Content
from server.loopback import frames, refusal, stats

ANSWER = (Prefill(0, 6), Content(" lived"), Content(" a king."), stats("length", reasoning=0))


def ask(client, **fields):
    return client.post("/v1/completions", json={"prompt": "Once"} | fields)


def test_a_reply(service, client):
    service.begin(*ANSWER)
    reply = ask(client, model="m").json()
    assert reply.pop("id").startswith("cmpl-")
    assert isinstance(reply.pop("created"), int)
    assert reply == {
        "object": "text_completion",
        "model": "m",
        "choices": [{"index": 0, "text": " lived a king.", "finish_reason": "length", "logprobs": None}],
        "usage": {
            "prompt_tokens": 10,
            "completion_tokens": 5,
            "total_tokens": 15,
            "prompt_tokens_details": {"cached_tokens": 4},
            "completion_tokens_details": {"reasoning_tokens": 0},
        },
    }


def test_a_stream(service, client):
    service.begin(*ANSWER)
    *chunks, done = frames(ask(client, stream=True, stream_options={"include_usage": True}))
    assert done == "[DONE]"
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    choices = [chunk["choices"][0] for chunk in chunks[:-1]]
    assert [(choice["text"], choice["finish_reason"]) for choice in choices] == [
        (" lived", None),
        (" a king.", None),
        ("", "length"),
    ]
    assert (chunks[-1]["choices"], chunks[-1]["usage"]["total_tokens"]) == ([], 15)
    assert all("usage" not in chunk for chunk in frames(ask(client, stream=True)))


def test_log_probabilities(service, client):
    service.begin(
        Content("ab"),
        TokenLogprobs(b"ab", -0.5, ((b"ab", -0.5), (b"c", -math.inf))),
        Content("d"),
        TokenLogprobs(b"d", -1.5, ()),
        stats(),
    )
    reply = ask(client, logprobs=2).json()
    assert reply["choices"][0]["logprobs"] == {
        "tokens": ["ab", "d"],
        "token_logprobs": [-0.5, -1.5],
        "top_logprobs": [{"ab": -0.5, "c": -9999.0}, {}],
        "text_offset": [0, 2],
    }
    choices = [chunk["choices"][0] for chunk in frames(ask(client, logprobs=2, stream=True))[:-1]]
    assert [(choice["text"], choice["logprobs"]["text_offset"]) for choice in choices] == [
        ("ab", [0]),
        ("d", [2]),
        ("", []),
    ]


@pytest.mark.parametrize(
    ("given", "prompt"),
    [
        ("Once", "Once"),
        (["Once"], "Once"),
        ([1, 2, 3], [1, 2, 3]),
        ([[1, 2, 3]], [1, 2, 3]),
        ("<|start|>", "<|start|>"),
    ],
)
def test_prompts(service, client, given, prompt):
    service.begin()
    assert ask(client, prompt=given).status_code == 200
    assert service.completed == [prompt]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [""]}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [[1], [2]]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [[["a"]]]}, "prompt"),
        ({"prompt": [1.5]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [10**30]}, "prompt"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"n": 2}, "n"),
        ({"best_of": 2}, "best_of"),
        ({"echo": True}, "echo"),
        ({"suffix": "end"}, "suffix"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": [""]}, "stop"),
        ({"temperature": 3}, "temperature"),
        ({"logit_bias": {"1": 1}}, "logit_bias"),
        ({"stream": 1}, "stream"),
        ({"model": []}, "model"),
    ],
)
def test_what_is_refused_is_named(service, client, fields, param):
    service.begin()
    assert refusal(ask(client, **fields))[:2] == (400, param)
    assert service.requests == []


def test_what_is_asked_for(service, client):
    service.begin()
    ask(client)
    ask(client, max_tokens=-1, echo=False, suffix=None, n=1, best_of=1)
    ask(client, max_tokens=9, stop=["\n"], seed=3, temperature=0, logprobs=0, user="a")
    first, unlimited, last = service.requests
    assert (first.max_tokens, first.logprobs, first.sampling) == (16, None, Sampling())
    assert unlimited.max_tokens is None
    assert (last.max_tokens, last.stop, last.logprobs, last.cache_key) == (9, ("\n",), 0, "a")
    assert last.sampling == Sampling(temperature=0, seed=3)


def test_openai_completes(service, openai):
    from openai import APIError, BadRequestError

    service.begin(*ANSWER)
    asked = {"model": "m", "prompt": "Once", "max_tokens": 5}
    reply = openai.completions.create(**asked)
    assert (reply.choices[0].text, reply.choices[0].finish_reason) == (" lived a king.", "length")
    chunks = list(openai.completions.create(**asked, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == " lived a king."
    with pytest.raises(BadRequestError, match="best_of is not supported"):
        openai.completions.create(**asked, best_of=3)
    service.begin(Content("a"), GptOssError("out of memory"))
    with pytest.raises(APIError, match="out of memory"):
        list(openai.completions.create(**asked, stream=True))
