"""What conversations are made of, and what draws them: deterministic, split by what is asked.

A turn is a question and what the assistant makes of it; a sample is a conversation, of whose last turn the assistant
should emit its part, as Harmony pieces. Whether a question belongs to the held-out split is decided by a hash of it,
so that no examined question is ever trained on. What is asked, the modules of the tasks know.
"""

from __future__ import annotations

import json
import random
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

from facts import FACTS, INSTRUCTIONS, PLAIN_INSTRUCTIONS, SMALL_TALK
from gptoss_mlx.engine.special_tokens import CALL, CHANNEL, CONSTRAIN, END, MESSAGE, RETURN, START
from gptoss_mlx.harmony.messages import FUNCTIONS, Conversation, Message, Tool, call
from gptoss_mlx.harmony.render import render, render_message
from tool_kinds import KINDS
from words import COLOURS, CURRENCIES, VERBS, draw_name

HELD_OUT_SHARE = 8  # one question in eight

LEAD_INS = ["", "", "", "", "", "", "Hi, ", "Hello! ", "Please, ", "One question: ", "Hey, ", "OK. "]

BEFORE_CALL = [START, "assistant"]
NO_ANALYSIS = [CHANNEL, "analysis", MESSAGE, END]
OPEN_FINAL = [CHANNEL, "final", MESSAGE]

Drawing = Callable[["Generator"], "Sample"]
TASKS: dict[str, Drawing] = {}
"""The name of each task, and what draws a sample of it; `task` fills it."""

Efforts = dict[str, str]
"""Reasoning effort -> an analysis of that length."""


@dataclass
class Turn:
    """A question, and what the assistant makes of it."""

    task: str
    question: str
    analysis: Efforts
    emitted: list[str]
    """What follows the analysis: the final answer, or a call."""
    answer: str
    result: Message | None = None
    """What a tool answers to the call, before the final answer."""
    expected: dict = field(default_factory=dict)
    """Of a call: its `name`, `arguments` and `outcome`."""

    def segments(self, effort: str) -> list[list[str]]:
        """What the assistant emits, what a tool answers, what it then emits."""
        emitted = [CHANNEL, "analysis", MESSAGE, self.analysis[effort], END, START, "assistant", *self.emitted]
        if self.result is None:
            return [emitted]
        return [emitted, [*render_message(self.result), START, "assistant"], final(self.answer)]

    @property
    def messages(self) -> list[Message]:
        """What later prompts contain of it."""
        messages = [Message("user", self.question)]
        if self.result is not None:
            messages += [call(self.expected["name"], json.dumps(self.expected["arguments"])), self.result]
        return [*messages, Message("assistant", self.answer, channel="final")]


@dataclass
class Sample:
    """`segments` are pieces, in turn: the prompt, what the assistant emits, what a tool answers, what it then emits.

    `given` is what the first and third end with, behind `<|start|>assistant`: what is written for the assistant.
    """

    task: str
    conversation: Conversation
    segments: list[list[str]]
    expected: dict = field(default_factory=dict)
    """What an examiner looks for: `answer`, or `name` and `arguments` of a call."""
    given: tuple[str, ...] = ()


def held_out(question: str) -> bool:
    return zlib.crc32(question.encode()) % HELD_OUT_SHARE == 0


def final(answer: str) -> list[str]:
    return [*OPEN_FINAL, answer, RETURN]


def function_call(name: str, arguments: str) -> list[str]:
    """A call in the form that gpt-oss samples: the recipient behind the channel."""
    return [CHANNEL, f"commentary to={FUNCTIONS}{name} ", CONSTRAIN, "json", MESSAGE, arguments, CALL]


def as_sampled(pieces: list[str]) -> list[str]:
    """Rendered pieces with earlier calls in the form that gpt-oss samples, in which a session keeps them."""
    sampled: list[str] = []
    rest = iter(pieces)
    for piece in rest:
        if piece.startswith(f" to={FUNCTIONS}"):
            marker, channel, _ = (next(rest) for _ in range(3))
            sampled += [marker, f"{channel}{piece} "]
        else:
            sampled.append(piece)
    return sampled


def vocabulary() -> list[str]:
    """Every word of the other tasks."""
    texts = [text for group in FACTS for text in (*group[0], *group[1], group[2])]
    texts += [text for questions, reply in SMALL_TALK for text in (*questions, reply)]
    for kind in KINDS:
        texts += [kind.name, kind.description, *kind.parameters, *kind.questions, kind.reply]
        texts += [str(value) for seed in range(40) for value in kind.outcome(random.Random(seed)).values()]
    return sorted({word for text in texts for word in re.findall(r"[\w-]+", text)} | {*COLOURS, *CURRENCIES, *VERBS})


VOCABULARY = vocabulary()

# What the developer says changes nothing in the answers: the model is too small to follow it.

Instructing = Callable[["Generator"], str | None]


def plain_instructions(g: Generator) -> str | None:
    return g.choose(PLAIN_INSTRUCTIONS) if g.random.random() < 0.2 else None


def some_instructions(g: Generator) -> str | None:
    return any_instructions(g) if g.random.random() < 0.3 else None


def any_instructions(g: Generator) -> str:
    """One to three sentences."""

    def draw() -> tuple[str]:
        sentences = g.random.sample(INSTRUCTIONS, g.choose([1, 1, 2, 3]))
        word = g.choose([draw_name(g.random), g.choose(COLOURS), g.choose(VOCABULARY)])
        return (" ".join(sentences).replace("{}", word),)

    return g.question(draw)[0]


class Generator:
    """Draws samples; `held_out` selects the split, `instructions` draws what the developer says, or that nothing is."""

    def __init__(self, seed: int, *, held_out: bool, instructions: Instructing = plain_instructions):
        self.random = random.Random(seed)
        self.held_out = held_out
        self.instructions = instructions

    def sample(self, task: str) -> Sample:
        return TASKS[task](self)

    def effort(self) -> str:
        return self.random.choice(["low", "medium", "medium", "high"])

    def sample_of(
        self,
        turn: Turn,
        *,
        effort: str | None = None,
        earlier: list[Turn] | tuple[()] = (),
        tools: tuple[Tool, ...] = (),
        instructions: str | None = None,
    ) -> Sample:
        """A conversation that ends in this turn; effort and instructions are drawn where none are given."""
        r = self.random
        instructions = instructions or self.instructions(self)
        messages = [] if instructions is None else [Message("developer", instructions)]
        messages += [message for before in earlier for message in before.messages]
        date = f"20{r.randint(24, 29)}-{r.randint(1, 12):02}-{r.randint(1, 28):02}" if r.random() < 0.8 else None
        messages.append(Message("user", turn.question))
        effort = effort or self.effort()
        conversation = Conversation(tuple(messages), tools, reasoning_effort=effort, current_date=date)
        prompt = list(render(conversation))
        # Conversations that come from elsewhere have calls as Harmony renders them.
        if any(before.result for before in earlier) and r.random() < 0.8:
            prompt = as_sampled(prompt)
        expected = turn.expected | {"answer": turn.answer}
        return Sample(turn.task, conversation, [prompt, *turn.segments(effort)], expected)

    def question(self, draw: Callable[[], tuple]) -> tuple:
        """Draw until the question, the first of what is drawn, belongs to this split."""
        while True:
            drawn = draw()
            if held_out(drawn[0]) == self.held_out:
                return drawn

    def choose(self, items: list):
        return self.random.choice(items)


def by_effort(low: str, medium: str, high: str) -> Efforts:
    return {"low": low, "medium": medium, "high": high}


def thought(about: str) -> Efforts:
    return by_effort(
        f"{about}.",
        f"{about}. I answer it in a sentence.",
        f"{about}. Let me think about what was asked. I know the answer, and I give it in a sentence.",
    )


def in_a_row(task: str, sample: Sample, turns: list[Turn]) -> Sample:
    """More turns behind a sample, with their analysis kept, as no chat renders them: more practice for the tokens of
    one prompt."""
    for turn in turns:
        emitted = turn.segments(sample.conversation.reasoning_effort)
        sample.segments += [[*render_message(Message("user", turn.question)), START, "assistant"], *emitted]
    sample.task = task
    return sample


def task(name: str) -> Callable[[Drawing], Drawing]:
    """What is decorated draws the samples of a task of this name."""

    def named(draw: Drawing) -> Drawing:
        TASKS[name] = draw
        return draw

    return named
