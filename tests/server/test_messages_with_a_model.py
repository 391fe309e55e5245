"""Anthropic's Messages API before the real engine: the demo model as it is, and one that samples what a test says."""

import asyncio

import pytest

import gptoss_mlx
from chat.conversing import Scripted
from gptoss_mlx.chat import answer as chat_answer
from gptoss_mlx.engine.tokenizer import Tokenizer
from gptoss_mlx.harmony.messages import result
from gptoss_mlx.harmony.render import encode, render_message
from gptoss_mlx.server.service import open_service
from server.loopback import serving

ROUNDS = 6  # test_rounds_of_agents.py has twenty

F = {
    "name": "f",
    "input_schema": {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]},
}
SUM = [{"role": "user", "content": "What is 12 + 30?"}]


@pytest.fixture(scope="module")
def url(demo_folder):
    service = asyncio.run(open_service(lambda: gptoss_mlx.load(demo_folder), "demo", places=2))
    with serving(service) as url:
        yield url
    service.close("the tests are over")


@pytest.fixture(scope="module")
def package(url):
    from anthropic import Anthropic

    with Anthropic(base_url=url, api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture
def samples(monkeypatch, demo_folder):
    """The model samples this text."""
    tokenizer = Tokenizer.load(demo_folder)

    def samples(text):
        monkeypatch.setattr(chat_answer, "Sampler", Scripted)
        Scripted.waiting = tokenizer.encode_markup(text)
        return tokenizer

    return samples


def ask(package, messages, *, streams=False, **fields):
    request = {"model": "demo", "max_tokens": 500, "messages": messages, "extra_body": {"temperature": 0}} | fields
    if not streams:
        return package.messages.create(**request)
    with package.messages.stream(**request) as stream:
        return stream.get_final_message()


def test_an_answer_and_its_tokens(package):
    count = package.messages.count_tokens(model="demo", messages=SUM, system="Be brief.")
    whole = ask(package, SUM, system="Be brief.")
    assert "42" in whole.content[-1].text
    assert whole.stop_reason == "end_turn"
    usage = whole.usage
    assert usage.input_tokens + usage.cache_read_input_tokens == count.input_tokens
    streamed = ask(package, SUM, system="Be brief.", streams=True)
    assert [block.text for block in streamed.content] == [block.text for block in whole.content]
    assert streamed.usage.cache_read_input_tokens == count.input_tokens - 1
    assert streamed.usage.input_tokens == 1


def step(number):
    return (
        f"<|channel|>analysis<|message|>Step {number}.<|end|><|start|>assistant"
        f"<|channel|>commentary<|message|>I do {number}.<|end|><|start|>assistant"
        f'<|channel|>commentary to=functions.f <|constrain|>json<|message|>{{"x":{number}}}<|call|>'
    )


@pytest.mark.parametrize(
    ("thinking", "streams"),
    [
        ({"type": "adaptive"}, True),
        (None, False),  # the reasoning does not come back, and is remembered
        pytest.param({"type": "adaptive"}, False, marks=pytest.mark.slow),
        pytest.param(None, True, marks=pytest.mark.slow),
    ],
)
def test_a_round_of_an_agent_costs_its_new_tokens(package, samples, thinking, streams):
    tokenizer = samples("".join(map(step, range(ROUNDS))) + "<|channel|>final<|message|>Done.<|return|>")
    fields = {"tools": [F], "streams": streams} | ({"thinking": thinking} if thinking else {})
    messages = [{"role": "user", "content": f"Do it, as {thinking}, {streams}."}]
    costs, news = [], []
    while True:
        message = ask(package, messages, **fields)
        costs.append(message.usage.input_tokens)
        if message.stop_reason != "tool_use":
            break
        assert [block.type for block in message.content] == ["thinking"] * bool(thinking) + ["text", "tool_use"]
        output = f"result {len(costs)}"
        told = {"type": "tool_result", "tool_use_id": message.content[-1].id, "content": output}
        messages += [{"role": "assistant", "content": message.content}, {"role": "user", "content": [told]}]
        news.append(len(encode(render_message(result("f", output)), tokenizer)))
    assert message.content[-1].text == "Done."
    # The end of the call, which was sampled but not read, the result, and the start of the answer.
    assert costs[1:] == [1 + new + 2 for new in news]
    assert len(news) == ROUNDS


def test_a_tool_that_is_not_among_the_first_can_be_called(package, samples):
    samples(step(1).replace("functions.f", "functions.g"))
    tools = [F, F | {"name": "g", "defer_loading": True}]
    message = ask(package, SUM, tools=tools)
    assert (message.content[-1].name, message.content[-1].input) == ("g", {"x": 1})


def test_a_call_that_is_required(package):
    message = ask(package, SUM, tools=[F], tool_choice={"type": "tool", "name": "f"})
    assert message.stop_reason == "tool_use"
    assert isinstance(message.content[-1].input["x"], int)


def test_texts_that_end_an_answer(package):
    message = ask(package, SUM, stop_sequences=["42"])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "42")
    assert "42" not in message.content[-1].text
    assert ask(package, SUM, max_tokens=3).stop_reason == "max_tokens"


@pytest.mark.parametrize("streams", [False, True])
def test_a_prompt_that_is_too_long(package, streams):
    from anthropic import BadRequestError

    messages = [{"role": "user", "content": "word " * 200_000}]
    with pytest.raises(BadRequestError, match=r"prompt is too long: \d+ tokens > \d+ maximum"):
        ask(package, messages, streams=streams)
