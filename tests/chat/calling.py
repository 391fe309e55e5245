"""Answers to requests with tools, and a model that wants something that it may not be allowed."""

import json
from functools import cache

import jsonschema
import mlx.core as mx
import numpy as np

from chat.conversing import answer
from engine.grammars import INTEGER, STRING, closed
from gptoss_mlx import Sampling
from gptoss_mlx.chat.answer import Answer, AnswerRules, Draft
from gptoss_mlx.chat.call_rules import call_rules
from gptoss_mlx.chat.request import AnswerRequest
from gptoss_mlx.chat.turn import Clock
from gptoss_mlx.engine.interrupts import Interrupts
from gptoss_mlx.engine.json_grammar import JsonGrammar
from gptoss_mlx.engine.prompt_cache import PromptCache
from gptoss_mlx.harmony.messages import Conversation, Message, Tool
from gptoss_mlx.harmony.openings import without_reasoning
from gptoss_mlx.harmony.parse import Content, Preamble, ToolCall
from gptoss_mlx.harmony.render import render_ids

PLACE = closed(place=STRING | {"maxLength": 12}, days=INTEGER | {"minimum": 1, "maximum": 9})
WEATHER = Tool("get_weather", "The weather somewhere.", PLACE)
TIME = Tool("get", "The time.")
GREEDY = Sampling(temperature=0)
CALL = "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>"
BY_SCHEMA = '{"place": "Bermi", "days": 3}'
THOUGHT = "<|channel|>analysis<|message|>Hm.<|end|>"


def request_for(*tools, question="What is the weather in Bermi?", **options):
    conversation = Conversation((Message("user", question),), tools=tools or (WEATHER,), current_date="2026-01-02")
    return AnswerRequest(conversation, **{"sampling": GREEDY, "max_tokens": 300} | options)


@cache
def prompt_cache_of(model):
    """One for all answers: a prompt that begins as the one before is not read again."""
    return PromptCache(model)


class Writing:
    """An answer to a request, and its events as far as it was written."""

    def __init__(self, model, request, *, written=(), schema=None, max_reasoning=None, calls=None):
        self.tokenizer, size = model.tokenizer, model.config.vocab_size
        stop = self.tokenizer.special("<|return|>")
        self.rules = AnswerRules(
            sampling=request.sampling,
            max_tokens=request.max_tokens,
            max_reasoning=max_reasoning if request.reasons else 0,
            grammar=None if schema is None else JsonGrammar(schema, self.tokenizer, size, stop),
            opening=() if request.reasons else without_reasoning(can_call=request.tool_choice != "none"),
            calls=calls or call_rules(request, self.tokenizer, size),
            logprobs=request.logprobs,
        )
        prompt = render_ids(request.conversation, self.tokenizer)
        self.clock = Clock(Interrupts(), None)
        draft = Draft(prompt, 0, 1, True, list(written))
        self.answer = Answer(draft, self.rules, prompt_cache_of(model), self.tokenizer, self.clock)
        self.events = []

    def all(self):
        self.events += self.answer.write()
        return self

    @property
    def calls(self):
        return [event for event in self.events if isinstance(event, ToolCall)]

    @property
    def text(self):
        return answer(self.events)

    @property
    def markup(self):
        return self.tokenizer.decode(self.answer.draft.written)


class Wishing:
    """Samples what it is told where that is allowed, and otherwise, or afterwards, the likeliest of what is. Something
    that is not allowed is wished for until it is, for at most `patience` tokens, or else given up."""

    wishes: list[int]
    patience = 0

    def __init__(self, *ignored, **options):
        self._waited = 0

    def __call__(self, logits, allowed=None):
        mask = np.ones(logits.shape[-1], bool) if allowed is None else np.array(allowed)
        while self.wishes:
            if mask[self.wishes[0]]:
                self._waited = 0
                return mx.array([self.wishes.pop(0)])
            if self._waited < self.patience:
                self._waited += 1
                break
            self.wishes.pop(0)
        return mx.array([int(np.argmax(np.where(mask, np.array(logits.astype(mx.float32))[0], -np.inf)))])


def assert_called(writing, name="get_weather", schema=PLACE):
    (called,) = writing.calls
    assert called.name == name
    jsonschema.validate(json.loads(called.arguments), schema)
    assert not [event for event in writing.events if isinstance(event, Content | Preamble)]
