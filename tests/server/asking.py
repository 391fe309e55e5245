"""Chat completions that tests ask for, the answers that a scripted model gives, and what comes back."""

from gptoss_mlx.chat.request import Called
from gptoss_mlx.chat.turn import Prefill, Thought
from gptoss_mlx.harmony.parse import Content, Preamble, Reasoning
from server.loopback import begins, frames, stats

HI = {"role": "user", "content": "Hi"}
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Looks.", "parameters": PARAMETERS}}
CLOCK = {"type": "function", "function": {"name": "clock"}}
THOUGHT = (Prefill(0, 6), Prefill(6, 6), begins(Reasoning, "Hm"), Reasoning("."), Thought(2, 0.1))
ANSWER = (*THOUGHT, begins(Content, "Hel"), Content("lo."), stats())
CALL = Called("call_1", "weather", '{"city": "Bermi"}')
CALLS = (*THOUGHT, begins(Preamble, "I look."), CALL, stats("tool_calls"))


def ask(client, **fields):
    return client.post("/v1/chat/completions", json={"messages": [HI]} | fields)


def choice_of(response):
    assert response.status_code == 200, response.text
    (choice,) = response.json()["choices"]
    return choice


def streamed(client, **fields):
    """The deltas, and how they ended; the form of each chunk is checked."""
    *chunks, done = frames(ask(client, stream=True, **fields))
    assert done == "[DONE]"
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    assert all(choice["index"] == 0 for choice in choices)
    assert [choice["finish_reason"] is None for choice in choices] == [True] * (len(choices) - 1) + [False]
    return [choice["delta"] for choice in choices], choices[-1]["finish_reason"]
