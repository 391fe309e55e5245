#!/usr/bin/env python3
"""The Python API in one page: `python examples/python_api.py FOLDER`, where FOLDER was made by `gptoss-mlx convert`."""

from __future__ import annotations

import sys

import mlx.core as mx

from gptoss_mlx import Sampling, Session, load
from gptoss_mlx.engine.tokenizer import Tokenizer
from gptoss_mlx.harmony.messages import Tool
from gptoss_mlx.harmony.parse import Content, Reasoning
from gptoss_mlx.tools.toolbox import Function

GREEDY = Sampling(temperature=0)

model = load(sys.argv[1])

# Logits, as MLX-LM's models give them.
ids = Tokenizer.load(model.path).encode("The license is Apache")
logits = model(mx.array([ids]))
print("logits", logits.shape)

# The same in two steps, with the KV state kept in between.
cache = model.make_cache()
model(mx.array([ids[:-1]]), cache)
again = model(mx.array([ids[-1:]]), cache)
difference = mx.abs(again[0, -1] - logits[0, -1]).max() / mx.abs(logits).max()
print("the same with a cache", difference.item() < 1e-2)

# Tokens from tokens.
print("ids", list(model.generate(ids, sampling=GREEDY, max_tokens=4)))

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
