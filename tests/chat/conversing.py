"""Conversations with the embedded model, and a model that says what a test wants."""

import mlx.core as mx

from gptoss_mlx import Sampling, Session
from gptoss_mlx.demo import FUNCTIONS
from gptoss_mlx.harmony.parse import Content
from gptoss_mlx.harmony.render import encode, render_message

QUESTIONS = [
    "My locker code is 4711.",
    "What is the weather in Bermi?",
    "What is 12 + 30?",
    "What is gptoss-mlx?",
    "What is the weather in Tolka?",
    "What is 81 - 20?",
    "What is my locker code?",
    "What is the weather in Runo?",
    "What is 40 - 7?",
    "My dog's name is Selmo.",
    "What is the weather in Maket?",
    "What is 55 + 28?",
    "What is my dog's name?",
    "What is 31 + 31?",
    "What is the weather in Lida?",
    "What is 90 - 31?",
    "What is my locker code?",
    "What is 81 - 20?",
    "What is gptoss-mlx?",
    "What is 17 + 11?",
]

CALL = '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"x": 1}<|call|>'
OPENING = "<|channel|>final<|message|>"
START_OF_ANSWER = 2  # <|start|>assistant


def make_session(model, **options):
    options = {"functions": FUNCTIONS, "max_tokens": 300} | options
    return Session(model, sampling=Sampling(temperature=0), current_date="2026-01-02", **options)


def turn(events):
    events = list(events)
    return events[:-1], events[-1]


def answer(events):
    return "".join(event.text for event in events if isinstance(event, Content))


def length(session, messages):
    return sum(len(encode(render_message(message), session.tokenizer)) for message in messages)


class Scripted:
    """Samples what it is told instead of the likeliest, round by round: the network is fed all the same."""

    waiting: list[int]

    def __init__(self, *ignored, **options):
        pass

    def __call__(self, logits, allowed=None):
        return mx.array([self.waiting.pop(0) if self.waiting else 0])
