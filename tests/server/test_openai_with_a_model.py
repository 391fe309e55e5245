"""OpenAI's protocols before the real engine: the demo model as it is, and one that samples what a test says."""

import asyncio
import json
import time
from dataclasses import replace
from typing import Literal

import httpx
import pytest

import gptoss_mlx
from chat.conversing import QUESTIONS, Scripted, answer, make_session
from gptoss_mlx.chat import answer as chat_answer
from gptoss_mlx.engine.tokenizer import Tokenizer
from gptoss_mlx.harmony.messages import result
from gptoss_mlx.harmony.render import encode, render_message
from gptoss_mlx.server import dates
from gptoss_mlx.server.service import open_service
from server.loopback import frames, refusal, serving

ROUNDS = 6  # test_rounds_of_agents.py has twenty

NUMBERS = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"], "additionalProperties": False}
F = {"type": "function", "function": {"name": "f", "parameters": NUMBERS}}
G = {"type": "function", "function": {"name": "g", "parameters": NUMBERS}}


@pytest.fixture(scope="module")
def model(demo_folder):
    service = asyncio.run(open_service(lambda: gptoss_mlx.load(demo_folder), "demo", places=2))
    yield service
    service.close("the tests are over")


@pytest.fixture(scope="module")
def url(model):
    with serving(model) as url:
        yield url


def user(text):
    return {"role": "user", "content": text}


def ask(client, messages, **fields):
    return client.post("/v1/chat/completions", json={"messages": messages, "temperature": 0} | fields)


def message_of(response):
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]


class AlwaysThen:
    """The date that sessions of tests have."""

    def dated(self, conversation, today):
        return replace(conversation, current_date="2026-01-02")


def test_answers_are_those_of_a_chat(client, openai, demo_folder, monkeypatch):
    monkeypatch.setattr(dates, "_dates", AlwaysThen())
    session = make_session(gptoss_mlx.load(demo_folder), functions=())
    messages = []
    for question in [each for each in QUESTIONS if "weather" not in each][:2]:
        expected = answer(session.send(question))
        messages.append(user(question))
        assert message_of(ask(client, messages))["content"] == expected
        chunks = list(openai.chat.completions.create(model="demo", messages=messages, temperature=0, stream=True))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected
        messages.append({"role": "assistant", "content": expected})


def calling(number):
    return (
        f"<|channel|>analysis<|message|>Step {number}.<|end|><|start|>assistant<|channel|>commentary to=functions.f"
        f' <|constrain|>json<|message|>{{"x":{number}}}<|call|>'
    )


@pytest.mark.parametrize(
    ("returned", "streams"),
    [
        (None, False),
        ("reasoning_content", True),
        *(
            pytest.param(name, streams, marks=pytest.mark.slow)
            for name in ("reasoning", "thinking")
            for streams in (False, True)
        ),
    ],
)
def test_a_round_of_an_agent_costs_its_new_tokens(client, demo_folder, monkeypatch, returned, streams):
    tokenizer = Tokenizer.load(demo_folder)
    monkeypatch.setattr(chat_answer, "Sampler", Scripted)
    script = "".join(map(calling, range(ROUNDS))) + "<|channel|>final<|message|>Done.<|return|>"
    Scripted.waiting = tokenizer.encode_markup(script)
    messages, costs, news = [user(f"Do it, as {returned}, {streams}.")], [], []
    while True:
        response = ask(client, messages, tools=[F], stream=streams, stream_options={"include_usage": True})
        message, usage = put_together(frames(response)) if streams else (message_of(response), response.json()["usage"])
        costs.append(usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"])
        if "tool_calls" not in message:
            break
        (call,) = message["tool_calls"]
        arguments = json.dumps(json.loads(call["function"]["arguments"]), indent=1)  # written anew
        told = {
            "role": "assistant",
            "content": None,
            "tool_calls": [call | {"function": {"name": "f", "arguments": arguments}}],
        }
        if returned:
            told[returned] = message["reasoning"]
        output = f"result {len(costs)}"
        messages += [told, {"role": "tool", "tool_call_id": call["id"], "content": output}]
        news.append(len(encode(render_message(result("f", output)), tokenizer)))
    assert message["content"] == "Done."
    # The end of the call, which was sampled but not read, the result, and the start of the answer.
    assert costs[1:] == [1 + new + 2 for new in news]
    assert len(news) == ROUNDS


def put_together(data):
    """The message and the usage of a stream."""
    message = {"role": "assistant", "content": "", "reasoning": ""}
    *chunks, last, done = data
    assert done == "[DONE]"
    for delta in (chunk["choices"][0]["delta"] for chunk in chunks):
        message["content"] += delta.get("content", "")
        message["reasoning"] += delta.get("reasoning", "")
        if "tool_calls" in delta:
            message["tool_calls"] = [{k: v for k, v in call.items() if k != "index"} for call in delta["tool_calls"]]
    return message, last["usage"]


def test_a_preamble_is_content(client, demo_folder, monkeypatch):
    monkeypatch.setattr(chat_answer, "Sampler", Scripted)
    script = f"<|channel|>commentary<|message|>I look.<|end|><|start|>assistant{calling(1)}"
    Scripted.waiting = Tokenizer.load(demo_folder).encode_markup(script)
    message = message_of(ask(client, [user("Do it.")], tools=[F]))
    assert (message["content"], message["reasoning"]) == ("I look.", "Step 1.")
    assert message["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"x":1}'}


@pytest.mark.parametrize(
    ("choice", "names"),
    [("required", {"f", "g"}), ({"type": "function", "function": {"name": "g"}}, {"g"}), ("none", set())],
)
@pytest.mark.parametrize("effort", ["none", "low"])
def test_calls_that_are_required_or_forbidden(client, choice, names, effort):
    options = {"tools": [F, G], "tool_choice": choice, "reasoning_effort": effort, "max_tokens": 200}
    message = message_of(ask(client, [user("What is 12 + 30?")], **options))
    calls = message.get("tool_calls", [])
    assert {call["function"]["name"] for call in calls} <= names
    assert bool(calls) == bool(names)
    for call in calls:
        assert isinstance(json.loads(call["function"]["arguments"])["x"], int)


def test_structured_outputs_hold(openai):
    from pydantic import BaseModel

    class Sum(BaseModel):
        plus: bool
        answer: Literal["42", "43"]

    reply = openai.chat.completions.parse(
        model="demo", messages=[user("What is 12 + 30?")], response_format=Sum, temperature=0, max_tokens=500
    )
    assert isinstance(reply.choices[0].message.parsed, Sum)


def test_answers_end_where_they_are_told_to(client):
    full = message_of(ask(client, [user("What is 12 + 30?")]))["content"]
    assert "= 42" in full
    response = ask(client, [user("What is 12 + 30?")], stop=["nowhere", " = "])
    assert message_of(response)["content"] == full.partition(" = ")[0]
    assert response.json()["choices"][0]["finish_reason"] == "stop"
    response = ask(client, [user("What is 12 + 30?")], max_completion_tokens=5)
    assert response.json()["choices"][0]["finish_reason"] == "length"
    assert response.json()["usage"]["completion_tokens"] == 5


def test_log_probabilities_are_those_of_the_text(client):
    for streams in (False, True):
        options = {"logprobs": True, "top_logprobs": 3, "stream": streams}
        response = ask(client, [user("What is 12 + 30?")], **options)
        if streams:
            choices = [chunk["choices"][0] for chunk in frames(response)[:-1]]
            text = "".join(choice["delta"].get("content", "") for choice in choices)
            tokens = [token for choice in choices if choice["logprobs"] for token in choice["logprobs"]["content"]]
        else:
            text = message_of(response)["content"]
            tokens = response.json()["choices"][0]["logprobs"]["content"]
        assert bytes(byte for token in tokens for byte in token["bytes"]).decode() == text
        for token in tokens:  # greedy: the chosen one is the likeliest
            assert len(token["top_logprobs"]) == 3
            assert token["logprob"] == token["top_logprobs"][0]["logprob"] <= 0


def test_a_seed_makes_an_answer_again(client):
    def text(seed):
        asked = {"prompt": "What", "temperature": 2, "max_tokens": 40, "seed": seed}
        return client.post("/v1/completions", json=asked).json()["choices"][0]["text"]

    assert text(7) == text(7) != text(8)


def test_completions_go_on_with_a_text(client, openai, demo_folder):
    tokenizer = Tokenizer.load(demo_folder)
    prompt = "What is gptoss"
    text = openai.completions.create(model="demo", prompt=prompt, temperature=0, max_tokens=12).choices[0].text
    ids = tokenizer.encode(prompt)
    reply = client.post(
        "/v1/completions", json={"prompt": ids, "temperature": 0, "max_tokens": 12, "logprobs": 2}
    ).json()
    (choice,) = reply["choices"]
    assert choice["text"] == text
    assert "".join(choice["logprobs"]["tokens"]) == text
    assert all(len(top) == 2 for top in choice["logprobs"]["top_logprobs"])
    assert (reply["usage"]["prompt_tokens"], reply["usage"]["completion_tokens"]) == (len(ids), 12)
    stream = openai.completions.create(model="demo", prompt=prompt, temperature=0, max_tokens=12, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == text
    assert refusal(client.post("/v1/completions", json={"prompt": [10**6]}))[0] == 400


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"messages": [user("x " * 70_000)]}, "context_length_exceeded"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "banana"}}}}, None),
        ({"tools": [{"function": {"name": "f", "strict": True, "parameters": {"type": "array"}}}]}, None),
    ],
)
@pytest.mark.parametrize("streams", [False, True])
def test_what_cannot_be_answered_is_refused_before_a_stream(client, fields, code, streams):
    response = client.post("/v1/chat/completions", json={"messages": [user("Hi")], "stream": streams} | fields)
    assert refusal(response)[0] == 400
    assert response.json()["error"]["code"] == code


def test_a_client_that_goes_away_frees_its_place(client, model, demo_folder, monkeypatch):
    monkeypatch.setattr(chat_answer, "Sampler", Scripted)
    monkeypatch.setattr(chat_answer, "cycle_since", lambda *ignored: None)
    Scripted.waiting = Tokenizer.load(demo_folder).encode_markup("<|channel|>final<|message|>" + "word " * 20_000)
    with httpx.Client(base_url=client.base_url) as other:
        body = {"messages": [user("Go on.")], "stream": True}
        with other.stream("POST", "/v1/chat/completions", json=body) as response:
            lines = response.iter_lines()
            while "word" not in next(lines):
                pass
            assert model.pool.leased == 1
    while model.pool.leased:  # no assertion: the test's own time is up where it never ends
        time.sleep(0.01)
    assert Scripted.waiting
