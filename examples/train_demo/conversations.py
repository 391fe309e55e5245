"""The conversations that the demo model is trained and examined on: of which tasks, and how often each.

The samples of the held-out evaluation follow from the order in which the generator draws: tests/demo has their digests,
so that results of models stay comparable.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator

import first_lines  # noqa: F401 - the tasks that it names
from arithmetic import draw_number, sum_turn
from calls import call_turn, draw_kinds, failed_turn, tools_of
from generator import (
    BEFORE_CALL,
    NO_ANALYSIS,
    OPEN_FINAL,
    Generator,
    Sample,
    Turn,
    some_instructions,
    task,
)
from gptoss_mlx.engine.special_tokens import CHANNEL, END, MESSAGE, RETURN
from questions import OWNED, draw_value, project_turn, recall_turn, small_talk_turn, statement_turn

# Whole conversations: any turn behind any others.


class Talk:
    """What the turns of one conversation have in common, and those that there were."""

    def __init__(self, g: Generator, *, tools: bool):
        self.g = g
        self.kinds = draw_kinds(g) if tools else []
        self.stated: dict[str, str] = {}
        self.turns: list[Turn] = []

    def go_on(self, count: int) -> None:
        for _ in range(count):
            # People say things again, and what was answered before must not be continued as it was then.
            plain = [turn for turn in self.turns if turn.task in ("project", "small talk")]
            again = plain and self.g.random.random() < 0.1
            self.turns.append(self.g.choose(plain) if again else self.turn(self.draw_task()))

    def draw_task(self) -> str:
        weights = {"project": 3, "arithmetic": 3, "small talk": 4, "statement": 2}
        weights |= {"recall": 2} if self.stated else {}
        weights |= {"tool call": 5, "tool error": 1} if self.kinds else {}
        return self.g.random.choices(list(weights), list(weights.values()))[0]

    def turn(self, task: str, number: Callable[[random.Random], int] = draw_number) -> Turn:
        g = self.g
        if task == "arithmetic":
            return sum_turn(g, number)
        if task == "recall":
            thing = g.choose(list(self.stated))
            return recall_turn(g, thing, self.stated[thing])
        if task in ("tool call", "tool error"):
            return (call_turn if task == "tool call" else failed_turn)(g, g.choose(self.kinds))
        if task == "statement" and (new := [thing for thing in OWNED if thing not in self.stated]):
            thing = g.choose(new)
            self.stated[thing] = draw_value(g, thing)
            return statement_turn(g, thing, self.stated[thing])
        return (project_turn if task == "project" else small_talk_turn)(g)

    def sample(self, turn: Turn, effort: str | None = None) -> Sample:
        return self.g.sample_of(turn, effort=effort, earlier=self.turns, tools=tools_of(self.g, self.kinds))


@task("later turn")
def later_turn(g: Generator) -> Sample:
    """Anything behind two to eight turns, tools at hand or not."""
    talk = Talk(g, tools=g.random.random() < 0.8)
    talk.go_on(g.random.randint(2, 8))
    return talk.sample(talk.turn(talk.draw_task()))


@task("later call")
def later_call(g: Generator) -> Sample:
    """A call behind one to six turns."""
    talk = Talk(g, tools=True)
    talk.go_on(g.random.randint(1, 6))
    return talk.sample(talk.turn("tool call"))


@task("long talk")
def long_talk(g: Generator) -> Sample:
    """Anything behind nine to twenty-six turns."""
    talk = Talk(g, tools=g.random.random() < 0.8)
    talk.go_on(g.random.randint(9, 26))
    return talk.sample(talk.turn(talk.draw_task()))


def short_talk(g: Generator) -> Talk:
    talk = Talk(g, tools=g.random.random() < 0.6)
    talk.go_on(g.choose([0, 0, 1, 1, 2, 3, 5]))
    return talk


@task("no reasoning")
def no_reasoning(g: Generator) -> Sample:
    """An empty analysis is given, and where no tool can be called the beginning of the answer too."""
    talk = short_talk(g)
    # More than one digit cannot be had at a glance, but has to be answered.
    one_digit = g.held_out or g.random.random() < 0.8
    task = talk.draw_task()
    while g.held_out and task == "arithmetic":
        task = talk.draw_task()
    turn = talk.turn(task, (lambda r: r.randrange(10)) if one_digit else draw_number)
    sample = talk.sample(turn, "low")
    sample.given = given = (*NO_ANALYSIS, *BEFORE_CALL) if talk.kinds else (*NO_ANALYSIS, *BEFORE_CALL, *OPEN_FINAL)
    prompt, _, *rest = sample.segments
    sample.segments = [[*prompt, *given], turn.emitted if talk.kinds else turn.emitted[len(OPEN_FINAL) :]]
    if rest:
        sample.segments += [[*rest[0], *given], rest[1]]
    return sample


@task("closed reasoning")
def closed_reasoning(g: Generator) -> Sample:
    """The analysis is ended for the model before it is done, and the answer begun."""
    talk = short_talk(g)
    task = talk.draw_task()
    while g.held_out and task in ("arithmetic", "tool error"):
        task = talk.draw_task()
    turn = talk.turn(task)
    sample = talk.sample(turn)
    analysis = turn.analysis[sample.conversation.reasoning_effort]
    # Cut where tokens end: before a space or beside a digit.
    cut = g.choose([0, *(found.start() for found in re.finditer(r"(?= )|(?=\d)|(?<=\d)", analysis))])
    sample.given = (CHANNEL, "analysis", MESSAGE, analysis[:cut], END, *BEFORE_CALL, *OPEN_FINAL)
    answer = turn.answer if turn.result is None else f"I would have to call {turn.expected['name']} for that."
    sample.segments = [[*sample.segments[0], *sample.given], [answer, RETURN]]
    sample.expected = {"answer": answer}
    return sample


# How often each task is drawn in training.
MIX = {
    "arithmetic": 14,
    "instructions": 10,
    "sums in a row": 12,
    "project": 60,
    "small talk": 6,
    "recall": 12,
    "statement": 3,
    "echo": 8,
    "tool call": 12,
    "tool error": 8,
    "calls in a row": 10,
    "results in a row": 8,
    "tools unused": 20,
    "follow-up": 20,
    "later turn": 40,
    "later call": 15,
    "long talk": 25,
    "no reasoning": 25,
    "closed reasoning": 12,
    "first line": 200,
    "first lines in a row": 210,
    "memory": 130,
}

# What is evaluated while it trains: one task for each ability.
WATCHED = (
    "arithmetic",
    "instructions",
    "project",
    "small talk",
    "recall",
    "tool call",
    "tool error",
    "tools unused",
    "later turn",
    "later call",
    "long talk",
    "no reasoning",
    "closed reasoning",
    "first line",
    "memory",
)


def training_samples(seed: int) -> Iterator[Sample]:
    """Without end."""
    generator = Generator(seed, held_out=False, instructions=some_instructions)
    names, weights = list(MIX), list(MIX.values())
    while True:
        yield generator.sample(generator.random.choices(names, weights)[0])
