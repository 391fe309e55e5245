"""Sums and differences: columns from the units, every digit copied before it is used."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from generator import (
    LEAD_INS,
    Efforts,
    Generator,
    Sample,
    Turn,
    any_instructions,
    by_effort,
    final,
    held_out,
    in_a_row,
    task,
)

SUMS = [
    "What is {a} + {b}?",
    "{a} + {b}",
    "Add {a} and {b}.",
    "How much is {a} plus {b}?",
    "Compute {a} + {b}.",
    "What is {a} plus {b}?",
    "{a}+{b}=?",
    "Please add {a} and {b}.",
    "Calculate {a} + {b}.",
    "What do {a} and {b} make?",
]
DIFFERENCES = [
    "What is {a} - {b}?",
    "{a} - {b}",
    "Subtract {b} from {a}.",
    "How much is {a} minus {b}?",
    "Compute {a} - {b}.",
    "What is {a} minus {b}?",
    "{a}-{b}=?",
    "Take {b} away from {a}.",
    "Calculate {a} - {b}.",
]


def draw_number(r: random.Random) -> int:
    return r.randrange(10 ** r.choice([1, 2, 2, 3, 3, 3, 3]))


def draw_sum(g: Generator, number: Callable[[random.Random], int] = draw_number) -> tuple[str, int, int, str]:
    a, b, sign = number(g.random), number(g.random), g.choose(["+", "-"])
    if number is draw_number and not g.held_out and g.random.random() < 0.4:
        # The hardest columns are those on the edge of a carry or a borrow: one digit of the result becomes 0, or the 9
        # that a carry from the right makes 0.
        place = 10 ** g.random.randrange(3)
        b = (b + (-(a + b) if sign == "+" else a - b) // place % 10 * place) % 1000
    if held_out(f"{a}{sign}{b}") != g.held_out:
        return draw_sum(g, number)
    return g.choose(SUMS if sign == "+" else DIFFERENCES).format(a=a, b=b), a, b, sign


def columns(a: int, b: int, sign: str) -> str:
    """The columns of a + b, or of a - b with a >= b: `7+5+0=12` means write 2 and carry 1."""
    steps, carry = [], 0
    for x, y in zip(reversed(f"{a:03}"), reversed(f"{b:03}"), strict=True):
        x, y = int(x), int(y)
        if sign == "+":
            total = x + y + carry
            steps.append(f"{x}+{y}+{carry}={total:02}")
            carry = total // 10
        else:
            borrow = x - y - carry < 0
            left = 10 * borrow + x
            steps.append(f"{left:02}-{y}-{carry}={left - y - carry}")
            carry = int(borrow)
    return ", ".join(steps)


def comparison(a: int, b: int) -> str:
    """Digit by digit until one is larger: `3=3 9<11`."""
    steps = []
    for x, y in zip(f"{a:03}", f"{b:03}", strict=True):
        steps.append(f"{x}{'<' if x < y else '>' if x > y else '='}{y}")
        if x != y:
            break
    return " ".join(steps)


def working(a: int, b: int, sign: str) -> Efforts:
    value = a + b if sign == "+" else a - b
    steps = f"{a:03}{sign}{b:03}: "
    if sign == "-":
        swap = a < b
        larger, smaller = (b, a) if swap else (a, b)
        steps += f"{comparison(a, b)}, {'swap' if swap else 'keep'} {larger:03}-{smaller:03}: "
        steps += columns(larger, smaller, sign)
    else:
        steps += columns(a, b, sign)
    steps += f" gives {abs(value):04}, so {value}."
    intro = "Add the columns from the right. " if sign == "+" else "Subtract the columns from the right. "
    check = f" Check: {a} {sign} {b} is {value}, and all three columns are done."
    return by_effort(steps, intro + steps, intro + steps + check)


def solved(a: int, b: int, sign: str) -> str:
    return f"{a} {sign} {b} = {a + b if sign == '+' else a - b}"


def sum_turn(g: Generator, number: Callable[[random.Random], int] = draw_number) -> Turn:
    question, a, b, sign = draw_sum(g, number)
    reply = solved(a, b, sign)
    return Turn("arithmetic", question, working(a, b, sign), final(reply), reply)


@task("arithmetic")
def arithmetic(g: Generator) -> Sample:
    effort, turn = g.effort(), sum_turn(g)
    return g.sample_of(replace(turn, question=g.choose(LEAD_INS) + turn.question), effort=effort)


@task("instructions")
def instructed_sum(g: Generator) -> Sample:
    """A sum under instructions of any wording."""
    return g.sample_of(sum_turn(g), instructions=any_instructions(g))


@task("sums in a row")
def sums_in_a_row(g: Generator) -> Sample:
    return in_a_row("sums in a row", arithmetic(g), [sum_turn(g) for _ in range(3)])
