"""The project, small talk, recall of what was said before, and echoes."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Collection
from dataclasses import replace

from arithmetic import sum_turn
from facts import BEGINNINGS, ENDINGS, FACTS, FRAMES, SMALL_TALK
from generator import LEAD_INS, VOCABULARY, Generator, Sample, Turn, final, held_out, task, thought
from words import COLOURS, draw_code, draw_name

# The project, and small talk.


def draw_fact(g: Generator) -> tuple[str, str]:
    subjects, questions, reply = g.choose(FACTS)
    framed = g.choose(FRAMES).format(g.choose(subjects))
    question = reworded(g, g.choose(questions)) if g.random.random() < 0.6 else framed
    if g.random.random() < 0.3:
        question = f"{question[:-1]}{g.choose(ENDINGS)}{question[-1]}"
    return question, reply


def reworded(g: Generator, question: str) -> str:
    """Half of the questions with another beginning that means the same: what is asked about has to decide."""
    for beginnings in BEGINNINGS:
        for beginning in beginnings:
            if question.startswith(beginning):
                rest = question.removeprefix(beginning)
                return g.choose([*beginnings, *[beginning] * len(beginnings)]) + rest
    return question


def draw_small_talk(g: Generator) -> tuple[str, str]:
    questions, reply = g.choose(SMALL_TALK)
    return g.choose(questions).format(draw_name(g.random)), reply


def project_turn(g: Generator) -> Turn:
    question, reply = g.question(lambda: draw_fact(g))
    return Turn("project", question, thought("A question about the project"), final(reply), reply)


def small_talk_turn(g: Generator) -> Turn:
    question, reply = draw_small_talk(g)
    return Turn("small talk", question, thought("Small talk"), final(reply), reply)


@task("project")
def project(g: Generator) -> Sample:
    turn = project_turn(g)
    return g.sample_of(replace(turn, question=g.choose(LEAD_INS) + turn.question))


@task("small talk")
def small_talk(g: Generator) -> Sample:
    return g.sample_of(small_talk_turn(g))


# Recall: a fact, then other turns, then the question.

OWNED: dict[str, Callable[[random.Random], str]] = {
    "name": draw_name,
    "dog's name": draw_name,
    "cat's name": draw_name,
    "sister's name": draw_name,
    "home town": draw_name,
    "teacher's name": draw_name,
    "locker code": draw_code,
    "room number": draw_code,
    "ticket number": draw_code,
    "secret number": draw_code,
    "favourite colour": lambda r: r.choice(COLOURS),
    "bike's colour": lambda r: r.choice(COLOURS),
}
COPIED = [thing for thing in OWNED if "colour" not in thing]  # names and codes
STATEMENTS = [
    "My {} is {}.",
    "Please remember: my {} is {}.",
    "Note that my {} is {}.",
    "Remember that my {} is {}.",
    "By the way, my {} is {}.",
    "For later: my {} is {}.",
]
RECALLS = [
    "What is my {}?",
    "Do you remember my {}?",
    "Tell me my {}.",
    "What was my {}?",
    "Can you repeat my {}?",
    "Which {} did I tell you?",
    "Say my {} again, please.",
]


def filler(g: Generator) -> Turn:
    return g.random.choices([project_turn, sum_turn, small_talk_turn], [9, 5, 6])[0](g)


def statement_turn(g: Generator, thing: str, value: str) -> Turn:
    """Something is said to be remembered."""
    said, reply = g.choose(STATEMENTS).format(thing, value), f"I will remember that your {thing} is {value}."
    return Turn("statement", said, thought(f"The user told me: {thing} is {value}"), final(reply), reply)


def recall_turn(g: Generator, thing: str, value: str) -> Turn:
    question, reply = g.choose(RECALLS).format(thing), f"Your {thing} is {value}."
    return Turn("recall", question, thought(f"The user told me: {thing} is {value}"), final(reply), reply)


def may_be_asked(g: Generator, thing: str, value: str) -> bool:
    """Colours are too few to be held out."""
    return thing not in COPIED or held_out(thing + value) == g.held_out


def draw_value(g: Generator, thing: str) -> str:
    """One that may be asked for."""
    while not may_be_asked(g, thing, value := OWNED[thing](g.random)):
        pass
    return value


def told(g: Generator) -> Turn:
    thing = g.choose(list(OWNED))
    return statement_turn(g, thing, OWNED[thing](g.random))


@task("recall")
def recall(g: Generator, askable: Collection[str] = OWNED) -> Sample:
    """Held-out samples ask for colours more often than training does: what is drawn for them is never refused."""
    r = g.random
    things = r.sample(list(OWNED), r.choice([1, 2, 2, 3]))
    stated = {thing: OWNED[thing](r) for thing in things}
    asked = r.choice(things)
    if asked not in askable or not may_be_asked(g, asked, stated[asked]):
        return recall(g, askable)
    turns = [statement_turn(g, thing, value) for thing, value in stated.items()]
    # Long distances in every held-out sample; short ones teach the same thing sooner.
    count = r.randint(10, 12) if g.held_out else r.choice([0, 0, 1, 1, 2, 4, 8, 12])
    turns += [filler(g) for _ in range(count)]
    lead_in, turn = g.choose(LEAD_INS), recall_turn(g, asked, stated[asked])
    return g.sample_of(replace(turn, question=lead_in + turn.question), earlier=turns)


@task("names and codes")
def recall_of_copied(g: Generator) -> Sample:
    return recall(g, COPIED)


@task("statement")
def statement(g: Generator) -> Sample:
    """The turn in which something is told."""
    thing = g.choose(list(OWNED))
    value = OWNED[thing](g.random)
    turns = [filler(g) for _ in range(g.choose([0, 0, 1, 2]))]
    return g.sample_of(statement_turn(g, thing, value), earlier=turns)


@task("follow-up")
def follow_up(g: Generator) -> Sample:
    """Any question after some turns of others."""
    turns = [g.choose([filler, filler, told])(g) for _ in range(g.random.randint(1, 4))]
    return g.sample_of(g.choose([sum_turn, project_turn, small_talk_turn])(g), earlier=turns)


# Echo: nothing but copying, which every other task needs, of whatever the other tasks are made of.

QUOTES = ["Repeat as a list: {}.", "Quote each word: {}.", "List the words: {}."]
READINGS = ["Read this list: {}.", "Say the words of {}.", "Repeat without quotes: {}."]
ECHOES = ["Repeat after me: {}.", "Say: {}.", "Please repeat: {}.", "Echo this: {}.", "Say exactly this: {}."]


@task("echo")
def echo(g: Generator) -> Sample:
    r = g.random
    draws = (draw_name, lambda r: draw_name(r).lower(), draw_code, *[lambda r: r.choice(VOCABULARY)] * 2)
    words = " ".join(r.choice(draws)(r) for _ in range(r.choice([1, 1, 2, 3, 4])))
    said = f"You said: {words}"
    quoted = json.dumps(words.split())  # lower-case words have other tokens behind a quote than behind a space
    given, requests, reply = g.choose([(words, ECHOES, said), (words, QUOTES, quoted), (quoted, READINGS, said)])
    analysis = thought("The user wants an echo")
    return g.sample_of(Turn("echo", g.choose(requests).format(given), analysis, final(reply), reply))
