"""What people type first, in the ways in which they type it, and what they want to be remembered.

`first_lines.txt` has what needs nothing but an answer: in each block a kind of question, wordings, and the answer; {}
is any word. Names and words are in `ordinary_words.txt`, or invented. Whether a wording is held out is decided before
it is typed in lower case or without its mark.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from arithmetic import sum_turn
from calls import call_turn, draw_kinds, tools_of
from generator import LEAD_INS, Generator, Sample, Turn, final, held_out, in_a_row, task, thought
from questions import filler, reworded
from tool_kinds import KINDS
from words import COLOURS, draw_code

ABOUT = {"project": "A question about the project", "small talk": "Small talk"}


def read_blocks(text: str) -> list[tuple[str, list[str], str]]:
    blocks = [block.splitlines() for block in text.strip().split("\n\n")]
    return [(kind, wordings, reply.removeprefix("> ")) for kind, *wordings, reply in blocks]


FIRST_LINES = read_blocks(Path(__file__).with_name("first_lines.txt").read_text(encoding="utf-8"))
UNKNOWN = FIRST_LINES[-1][2]

PEOPLE, WORDS = (
    part.split() for part in Path(__file__).with_name("ordinary_words.txt").read_text(encoding="utf-8").split("\n\n")
)


def invented(r: random.Random) -> str:
    """A word that nobody knows: it can only be copied."""
    parts = [r.choice("bcdfghjklmnprstvwxyz") + r.choice("aeiou") for _ in range(r.randint(1, 3))]
    return "".join(parts) + r.choice(["", *"nrstlkmd", "ck", "ng"])


def any_name(r: random.Random) -> str:
    name = r.choice([r.choice(PEOPLE), invented(r).capitalize()])
    return name.lower() if r.random() < 0.2 else name


def any_word(r: random.Random) -> str:
    return r.choice([r.choice(WORDS), r.choice(WORDS), invented(r), invented(r).capitalize()])


def any_colour(r: random.Random) -> str:
    return r.choice(COLOURS)


@dataclass(frozen=True)
class Memory:
    """Something that people tell: {} is its value."""

    thing: str
    draw: Callable[[random.Random], str]
    told: tuple[str, ...]
    noted: str
    asked: tuple[str, ...]
    answer: str


MEMORIES = [
    Memory(
        "name",
        any_name,
        (
            "My name is {}",
            "I'm {}",
            "I am {}",
            "Call me {}",
            "You can call me {}",
            "Hi, I'm {}",
            "Hello, my name is {}",
            "Hi, my name is {}",
            "Hey, I am {}",
            "My name's {}",
            "I am called {}",
            "People call me {}",
            "Remember my name: {}",
            "Please remember that my name is {}",
            "Remember that I am called {}",
            "Hello, {} here",
            "The name is {}",
            "You are talking to {}",
        ),
        "I will remember that your name is {}.",
        (
            "What is my name?",
            "What's my name?",
            "Who am I?",
            "Do you know my name?",
            "Do you remember my name?",
            "Tell me my name",
            "Say my name",
            "What am I called?",
            "Do you know who I am?",
            "What did I say my name was?",
            "Can you tell me my name?",
            "And what is my name?",
            "So what's my name?",
            "What was my name?",
            "Remember my name?",
            "My name?",
        ),
        "Your name is {}.",
    ),
    Memory(
        "word",
        any_word,
        (
            "Remember the word {}",
            "Please remember the word {}",
            "Remember this word: {}",
            "Can you remember the word {}?",
            "The word is {}",
            "The secret word is {}",
            "The magic word is {}",
            "My word is {}",
            "Keep the word {} in mind",
            "Don't forget the word {}",
            "Memorize the word {}",
            "Memorise this: {}",
            "Remember {}",
            "Please remember {}",
            "Remember this: {}",
            "Note the word {}",
            'Remember the word "{}"',
            "The password is {}",
            "The code word is {}",
            "I will tell you a word: {}",
        ),
        "I will remember the word {}.",
        (
            "What was the word?",
            "What is the word?",
            "What's the word?",
            "Which word was it?",
            "Which word did I tell you?",
            "What word did I tell you?",
            "What did I ask you to remember?",
            "What did I tell you to remember?",
            "What should you remember?",
            "Tell me the word",
            "Say the word",
            "Do you remember the word?",
            "Do you still know the word?",
            "What was the secret word?",
            "What is the magic word?",
            "Repeat the word",
            "What was my word?",
            "Can you tell me the word?",
            "What is the password?",
        ),
        "The word is {}.",
    ),
    Memory(
        "number",
        draw_code,
        (
            "Remember the number {}",
            "Please remember the number {}",
            "The number is {}",
            "My number is {}",
            "My lucky number is {}",
            "Remember this number: {}",
            "Keep the number {} in mind",
            "Note the number {}",
        ),
        "I will remember the number {}.",
        (
            "What was the number?",
            "What is the number?",
            "What's my number?",
            "Which number did I tell you?",
            "What number did I tell you?",
            "Tell me the number",
            "Do you remember the number?",
            "Say the number",
        ),
        "The number is {}.",
    ),
    Memory(
        "home",
        lambda r: any_word(r).capitalize(),
        ("I live in {}", "I am from {}", "I come from {}", "My home is {}", "I'm from {}", "My city is {}"),
        "I will remember that you are from {}.",
        (
            "Where do I live?",
            "Where am I from?",
            "Where do I come from?",
            "What is my city?",
            "Do you know where I live?",
            "Do you remember where I live?",
        ),
        "You are from {}.",
    ),
    Memory(
        "dog's name",
        any_name,
        ("My dog is called {}", "I have a dog called {}", "I have a dog, {}", "My dog's name is {}", "Our dog is {}"),
        "I will remember that your dog's name is {}.",
        (
            "What is my dog called?",
            "What's my dog's name?",
            "What is the name of my dog?",
            "Do you remember my dog?",
            "Who is my dog?",
        ),
        "Your dog's name is {}.",
    ),
    Memory(
        "cat's name",
        any_name,
        ("My cat is called {}", "I have a cat called {}", "I have a cat, {}", "My cat's name is {}", "Our cat is {}"),
        "I will remember that your cat's name is {}.",
        ("What is my cat called?", "What's my cat's name?", "What is the name of my cat?", "Do you remember my cat?"),
        "Your cat's name is {}.",
    ),
    Memory(
        "favourite colour",
        any_colour,
        ("My favourite colour is {}", "My favorite color is {}", "I like the colour {}", "I like {} best"),
        "I will remember that your favourite colour is {}.",
        (
            "What is my favourite colour?",
            "What's my favorite color?",
            "Which colour do I like?",
            "What colour do I like?",
        ),
        "Your favourite colour is {}.",
    ),
    Memory(
        "favourite food",
        any_word,
        ("My favourite food is {}", "My favorite food is {}", "I like to eat {}", "I love to eat {}"),
        "I will remember that your favourite food is {}.",
        ("What is my favourite food?", "What's my favorite food?", "What do I like to eat?", "Which food do I like?"),
        "Your favourite food is {}.",
    ),
]
NOT_TOLD = "You have not told me that yet."


def typed(g: Generator, text: str) -> str:
    """The text as somebody types it: often in lower case, without the mark, shortened, and at times with a slip."""
    r = g.random
    if r.random() < 0.3:
        text = re.sub(r"\b(What|what|Where|where|Who|who) is\b", r"\1's", text)
    if r.random() < 0.4:
        text = text.lower()
    mark = r.random()
    if mark < 0.35:
        text = text.rstrip(".?!")
    elif mark < 0.45 and text[-1].isalnum():
        text += g.choose([".", "!", "?"])
    if r.random() < 0.1:
        text = text.replace("'", "")
    if r.random() < 0.05 and len(text) > 8:
        at = r.randrange(1, len(text) - 2)
        if text[at : at + 2].isalpha():
            text = (
                text[:at] + g.choose([text[at + 1] + text[at], text[at], text[at] * 2 + text[at + 1]]) + text[at + 2 :]
            )
    return text


def opened(g: Generator, turn: Turn) -> Turn:
    """Now and then behind a word that opens a conversation."""
    lead_in = g.choose(LEAD_INS) if g.random.random() < 0.25 else ""
    return replace(turn, question=lead_in + turn.question)


def first_line_turn(g: Generator) -> Turn:
    def draw() -> tuple[str, str, str]:
        kind, wordings, reply = g.choose(FIRST_LINES) if g.random.random() < 0.85 else FIRST_LINES[-1]
        wording = g.choose(wordings)
        while "{}" in wording:
            wording = wording.replace("{}", any_word(g.random), 1)
        return reworded(g, wording[0].upper() + wording[1:]), kind, reply

    question, kind, reply = g.question(draw)
    return Turn("first line", typed(g, question), thought(ABOUT[kind]), final(reply), reply)


def told_turn(g: Generator, memory: Memory, value: str) -> Turn:
    said = typed(g, g.choose(memory.told)).replace("{}", value)
    return memory_turn(said, memory, value, memory.noted.format(value))


def asked_turn(g: Generator, memory: Memory, value: str) -> Turn:
    return memory_turn(typed(g, g.choose(memory.asked)), memory, value, memory.answer.format(value))


def memory_turn(said: str, memory: Memory, value: str, reply: str) -> Turn:
    return Turn("memory", said, thought(f"The user told me: {memory.thing} is {value}"), final(reply), reply)


def draw_value(g: Generator, memory: Memory) -> str:
    """Of a thing that has only some values, any of them."""
    while True:
        value = memory.draw(g.random)
        if memory.draw is any_colour or held_out(memory.thing + value) == g.held_out:
            return value


@task("first line")
def first_line(g: Generator) -> Sample:
    """At the beginning, or behind a few turns; with tools at hand, or none."""
    r = g.random
    kinds = draw_kinds(g) if r.random() < 0.5 else []
    chosen = r.random()
    if chosen < 0.84:
        turn = first_line_turn(g)
    elif chosen < 0.92:
        turn = sum_turn(g)
        turn = replace(turn, question=typed(g, turn.question))
    else:
        turn = call_turn(g, g.choose(kinds or KINDS))
        question = turn.question.rstrip(".?") if r.random() < 0.4 else turn.question
        turn = replace(turn, question=question[0].lower() + question[1:] if r.random() < 0.4 else question)
        if not kinds:  # what only a function could have answered
            turn = Turn("first line", turn.question, thought(ABOUT["small talk"]), final(UNKNOWN), UNKNOWN)
    earlier = [g.choose([filler, first_line_turn])(g) for _ in range(g.choose([0, 0, 0, 0, 0, 1, 2, 3]))]
    return g.sample_of(opened(g, turn), earlier=earlier, tools=tools_of(g, kinds))


@task("memory")
def memory(g: Generator) -> Sample:
    """Something is told, and asked for at once or after some turns; or only told, or asked for and never told."""
    r = g.random
    some = r.sample(MEMORIES, g.choose([1, 1, 2, 3])) if r.random() < 0.3 else [MEMORIES[g.choose([0, 0, 1, 1, 1, 2])]]
    values = {thing.thing: draw_value(g, thing) for thing in some}
    earlier = [g.choose([filler, first_line_turn])(g) for _ in range(g.choose([0, 0, 0, 0, 0, 1, 2]))]
    kinds = draw_kinds(g) if r.random() < 0.4 else []
    told = [told_turn(g, thing, values[thing.thing]) for thing in some]
    chosen = r.random()
    if chosen < 0.3:
        turns, turn = [*earlier, *told[:-1]], told[-1]
    elif chosen < 0.38:
        asked = g.choose([thing for thing in MEMORIES if thing not in some])
        turn = Turn("memory", typed(g, g.choose(asked.asked)), thought("Small talk"), final(NOT_TOLD), NOT_TOLD)
        turns = [*earlier, *g.choose([told, []])]
    else:
        asked = g.choose(some)
        turns = [*told, *earlier] if r.random() < 0.7 else [*earlier, *told]
        turn = asked_turn(g, asked, values[asked.thing])
    return g.sample_of(turn, earlier=turns, tools=tools_of(g, kinds))


@task("first lines in a row")
def first_lines_in_a_row(g: Generator) -> Sample:
    """All kinds of them, what is told and asked for too."""
    values: dict[str, str] = {}

    def draw() -> Turn:
        if g.random.random() < 0.7:
            return first_line_turn(g)
        thing = MEMORIES[g.choose([0, 0, 1, 1, *range(len(MEMORIES))])]
        if thing.thing in values and g.random.random() < 0.8:
            return asked_turn(g, thing, values[thing.thing])
        values[thing.thing] = draw_value(g, thing)
        return told_turn(g, thing, values[thing.thing])

    kinds = draw_kinds(g) if g.random.random() < 0.3 else []
    first, *others = (draw() for _ in range(g.random.randint(5, 12)))
    return in_a_row("first lines in a row", g.sample_of(opened(g, first), tools=tools_of(g, kinds)), others)
