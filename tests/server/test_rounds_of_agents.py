"""What a round of an agent costs through each protocol, whose clients send the whole conversation back."""

import asyncio

import httpx
import pytest

import gptoss_mlx
from chat.conversing import Scripted
from gptoss_mlx.chat import answer as chat_answer
from gptoss_mlx.engine.tokenizer import Tokenizer
from gptoss_mlx.harmony.messages import result
from gptoss_mlx.harmony.render import encode, render_message
from gptoss_mlx.server.service import open_service
from server.loopback import serving

ROUNDS = 20
PARAMETERS = {"type": "object", "properties": {"x": {"type": "integer"}}}


def calling(number):
    return (
        f"<|channel|>analysis<|message|>Step {number}.<|end|><|start|>assistant<|channel|>commentary to=functions.f"
        f'<|constrain|>json<|message|>{{"x":  {number}}}<|call|>'
    )


class Chat:
    path = "/v1/chat/completions"

    def __init__(self):
        self.body = {
            "messages": [{"role": "user", "content": "Do it."}],
            "tools": [{"type": "function", "function": {"name": "f", "parameters": PARAMETERS}}],
        }

    def cost(self, reply):
        usage = reply["usage"]
        return usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"]

    def go_on(self, reply, output):
        message = reply["choices"][0]["message"]
        for call in message["tool_calls"]:
            answer = {"role": "tool", "tool_call_id": call["id"], "content": output}
            self.body["messages"] += [message, answer]


class Responses:
    path = "/v1/responses"

    def __init__(self):
        self.body = {
            "input": [{"role": "user", "content": "Do it."}],
            "tools": [{"type": "function", "name": "f", "parameters": PARAMETERS}],
            "store": False,
        }

    def cost(self, reply):
        usage = reply["usage"]
        assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
        return usage["input_tokens"] - usage["input_tokens_details"]["cached_tokens"]

    def go_on(self, reply, output):
        self.body["input"] += reply["output"]
        call = reply["output"][-1]
        self.body["input"].append({"type": "function_call_output", "call_id": call["call_id"], "output": output})


class Previous(Responses):
    """By the id of the response before."""

    def __init__(self):
        super().__init__()
        del self.body["store"]

    def go_on(self, reply, output):
        call = reply["output"][-1]
        self.body["previous_response_id"] = reply["id"]
        self.body["input"] = [{"type": "function_call_output", "call_id": call["call_id"], "output": output}]


class Messages:
    path = "/v1/messages"

    def __init__(self):
        self.body = {
            "max_tokens": 1000,
            "messages": [{"role": "user", "content": "Do it."}],
            "tools": [{"name": "f", "input_schema": PARAMETERS}],
        }

    def cost(self, reply):
        return reply["usage"]["input_tokens"]

    def go_on(self, reply, output):
        call = reply["content"][-1]
        answer = {"type": "tool_result", "tool_use_id": call["id"], "content": output}
        self.body["messages"] += [
            {"role": "assistant", "content": reply["content"]},
            {"role": "user", "content": [answer]},
        ]


@pytest.mark.parametrize("protocol", [Chat, Responses, Previous, Messages])
def test_a_round_costs_its_new_tokens(demo_folder, monkeypatch, protocol):
    tokenizer = Tokenizer.load(demo_folder)
    monkeypatch.setattr(chat_answer, "Sampler", Scripted)
    service = asyncio.run(open_service(lambda: gptoss_mlx.load(demo_folder), "demo", places=2))
    client, costs, new = protocol(), [], []
    with serving(service) as url, httpx.Client(base_url=url, timeout=600) as http:
        for number in range(ROUNDS):
            Scripted.waiting = tokenizer.encode_markup(calling(number))
            reply = http.post(client.path, json={"model": "demo"} | client.body)
            assert reply.status_code == 200, reply.text
            costs.append(client.cost(reply.json()))
            output = f"result {number}"
            new.append(len(encode(render_message(result("f", output)), tokenizer)))
            client.go_on(reply.json(), output)
    service.close("the test is over")
    # The end of the call, which was sampled but not read, the result, and the start of the answer.
    assert costs[1:] == [1 + tokens + 2 for tokens in new[:-1]]
