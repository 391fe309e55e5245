#!/usr/bin/env python3
"""The Python API in one page: `python examples/python_api.py MODEL`, where MODEL is a folder that `gptoss-mlx convert`
made, or the name of a converted model."""

from __future__ import annotations

import sys

import mlx.core as mx

from gptoss_mlx import Content, Function, Reasoning, Sampling, Session, Tool, generate, load, stream_generate

GREEDY = Sampling(temperature=0)

# A memory plan is made first, and kept: load("gpt-oss-20b", memory="16GB", context=8192, kv_bits=8).
model = load(sys.argv[1], context=4096)

# Logits, as MLX-LM's models give them.
ids = model.tokenizer.encode("The license is Apache")
logits = model(mx.array([ids]))
print("logits", logits.shape)

# The same in two steps, with the KV cache kept in between.
cache = model.make_cache()
model(mx.array([ids[:-1]]), cache)
again = model(mx.array([ids[-1:]]), cache)
difference = mx.abs(again[0, -1] - logits[0, -1]).max() / mx.abs(logits).max()
print("the same with a cache", difference.item() < 1e-2)

# Tokens from tokens.
print("ids", list(model.generate(ids, sampling=GREEDY, max_tokens=4)))

# One answer, whole or piece by piece.
print(generate(model, "What is 347 + 285?", sampling=GREEDY))
for text in stream_generate(model, "What is gptoss-mlx?", sampling=GREEDY):
    print(text, end="", flush=True)
print()

# A conversation: events while they arrive.
session = Session(model, sampling=GREEDY, reasoning_effort="low", max_tokens=200)
for event in session.send("What is 12 + 30?"):
    match event:
        case Reasoning(text):
            print(text, end="", file=sys.stderr)
        case Content(text):
            print(text, end="")
print()


# A function that the model may call.
def get_weather(location: str) -> dict:
    return {"temperature": 21, "sky": "sunny"}


schema = {"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]}
weather = Function(Tool("get_weather", "Gets the weather of a place.", schema), get_weather)
session = Session(model, functions=[weather], sampling=GREEDY, max_tokens=200)
events = session.send("What is the weather in Bermi?")
print("".join(event.text for event in events if isinstance(event, Content)))
