"""The conversations that the demo model is trained and examined on: generated, deterministic, split by what is asked.

A sample is a prompt and what the assistant should emit, as Harmony pieces. Whether a prompt belongs to the held-out
split is decided by a hash of its question, so that no examined question is ever trained on.
"""

from __future__ import annotations

import json
import random
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from facts import BEGINNINGS, ENDINGS, FACTS, FRAMES, SMALL_TALK
from gptoss_mlx.harmony.messages import Conversation, Message, Tool, result
from gptoss_mlx.harmony.render import CALL, CHANNEL, CONSTRAIN, END, MESSAGE, RETURN, START, render, render_message
from tool_kinds import KINDS, ToolKind
from words import COLOURS, CURRENCIES, VERBS, draw_code, draw_name

HELD_OUT_SHARE = 8  # one question in eight

LEAD_INS = ["", "", "", "", "", "", "Hi, ", "Hello! ", "Please, ", "One question: ", "Hey, ", "OK. "]


@dataclass
class Sample:
    """`segments` are pieces, in turn: the prompt, what the assistant emits, what a tool answers, what it then emits."""

    task: str
    conversation: Conversation
    segments: list[list[str]]
    expected: dict = field(default_factory=dict)
    """What an examiner looks for: `answer`, or `name` and `arguments` of a call."""


def held_out(question: str) -> bool:
    return zlib.crc32(question.encode()) % HELD_OUT_SHARE == 0


def analysis_and_final(analysis: str, final: str) -> list[str]:
    return [CHANNEL, "analysis", MESSAGE, analysis, END, START, "assistant", *answer(final)]


def answer(final: str) -> list[str]:
    return [CHANNEL, "final", MESSAGE, final, RETURN]


def function_call(name: str, arguments: str) -> list[str]:
    """A call in the form that gpt-oss samples: the recipient behind the channel."""
    header = [CHANNEL, f"commentary to=functions.{name} ", CONSTRAIN, "json"]
    return [*header, MESSAGE, arguments, CALL]


class Generator:
    """Draws samples; `held_out` selects the split."""

    def __init__(self, seed: int, *, held_out: bool):
        self.random = random.Random(seed)
        self.held_out = held_out

    def sample(self, task: str) -> Sample:
        return TASKS[task](self)

    def effort(self) -> str:
        return self.random.choice(["low", "medium", "medium", "high"])

    def conversation(
        self, messages: list[Message], tools: tuple[Tool, ...] = (), effort: str | None = None
    ) -> Conversation:
        r = self.random
        instructions = r.choice(INSTRUCTIONS) if r.random() < 0.2 else None
        if instructions:
            messages = [Message("developer", instructions), *messages]
        date = f"20{r.randint(24, 29)}-{r.randint(1, 12):02}-{r.randint(1, 28):02}" if r.random() < 0.8 else None
        return Conversation(tuple(messages), tools, reasoning_effort=effort or self.effort(), current_date=date)

    def question(self, draw: Callable[[], tuple]) -> tuple:
        """Draw until the question, the first of what is drawn, belongs to this split."""
        while True:
            drawn = draw()
            if held_out(drawn[0]) == self.held_out:
                return drawn

    def choose(self, items: list):
        return self.random.choice(items)


INSTRUCTIONS = ["Be brief.", "You are a helpful assistant.", "Answer in one sentence.", "Be polite and clear."]


def by_effort(effort: str, low: str, medium: str, high: str) -> str:
    return {"low": low, "medium": medium, "high": high}[effort]


# Arithmetic: columns from the units, every digit copied before it is used.

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


def draw_sum(g: Generator) -> tuple[str, int, int, str]:
    a, b, sign = draw_number(g.random), draw_number(g.random), g.choose(["+", "-"])
    if not g.held_out and g.random.random() < 0.4:
        # The hardest columns are those on the edge of a carry or a borrow: one digit of the result becomes 0, or the 9
        # that a carry from the right makes 0.
        place = 10 ** g.random.randrange(3)
        b = (b + (-(a + b) if sign == "+" else a - b) // place % 10 * place) % 1000
    if held_out(f"{a}{sign}{b}") != g.held_out:
        return draw_sum(g)
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


def working(a: int, b: int, sign: str, effort: str) -> str:
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
    return by_effort(effort, steps, intro + steps, intro + steps + check)


def solved(a: int, b: int, sign: str) -> str:
    return f"{a} {sign} {b} = {a + b if sign == '+' else a - b}"


def worked_sum(g: Generator, effort: str) -> tuple[str, list[str], str]:
    """A question, what the assistant emits, and the answer in it."""
    question, a, b, sign = draw_sum(g)
    reply = solved(a, b, sign)
    return question, analysis_and_final(working(a, b, sign, effort), reply), reply


def arithmetic(g: Generator) -> Sample:
    effort = g.effort()
    question, emitted, reply = worked_sum(g, effort)
    conversation = g.conversation([Message("user", g.choose(LEAD_INS) + question)], effort=effort)
    return Sample("arithmetic", conversation, [list(render(conversation)), emitted], {"answer": reply})


def sums_in_a_row(g: Generator) -> Sample:
    """Four sums with their analysis kept, as no chat renders them: more practice for the tokens of one prompt."""
    sample = arithmetic(g)
    for _ in range(3):
        question, emitted, _ = worked_sum(g, sample.conversation.reasoning_effort)
        sample.segments += [[*render_message(Message("user", question)), START, "assistant"], emitted]
    sample.task = "sums in a row"
    return sample


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


def thought(effort: str, about: str) -> str:
    return by_effort(
        effort,
        f"{about}.",
        f"{about}. I answer it in a sentence.",
        f"{about}. Let me think about what was asked. I know the answer, and I give it in a sentence.",
    )


def project(g: Generator) -> Sample:
    question, reply = g.question(lambda: draw_fact(g))
    conversation = g.conversation([Message("user", g.choose(LEAD_INS) + question)])
    emitted = analysis_and_final(thought(conversation.reasoning_effort, "A question about the project"), reply)
    return Sample("project", conversation, [list(render(conversation)), emitted], {"answer": reply})


def small_talk(g: Generator) -> Sample:
    question, reply = draw_small_talk(g)
    conversation = g.conversation([Message("user", question)])
    emitted = analysis_and_final(thought(conversation.reasoning_effort, "Small talk"), reply)
    return Sample("small talk", conversation, [list(render(conversation)), emitted], {"answer": reply})


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


def filler(g: Generator) -> tuple[str, str]:
    kind = g.random.random()
    if kind < 0.45:
        return g.question(lambda: draw_fact(g))
    if kind < 0.7:
        question, a, b, sign = draw_sum(g)
        return question, solved(a, b, sign)
    return draw_small_talk(g)


def telling(g: Generator, thing: str, value: str) -> tuple[str, str]:
    """What is said to be remembered, and the reply."""
    return g.choose(STATEMENTS).format(thing, value), f"I will remember that your {thing} is {value}."


def told(g: Generator) -> tuple[str, str]:
    thing = g.choose(list(OWNED))
    return telling(g, thing, OWNED[thing](g.random))


def exchanged(turns: list[tuple[str, str]]) -> list[Message]:
    """The messages of earlier turns, of which only what was said and answered is left."""
    return [
        message
        for said, replied in turns
        for message in (Message("user", said), Message("assistant", replied, channel="final"))
    ]


def recall(g: Generator) -> Sample:
    r = g.random
    things = r.sample(list(OWNED), r.choice([1, 2, 2, 3]))
    stated = {thing: OWNED[thing](r) for thing in things}
    asked = r.choice(things)
    if held_out(asked + stated[asked]) != g.held_out and "colour" not in asked:
        return recall(g)
    turns = [telling(g, thing, value) for thing, value in stated.items()]
    # Long distances in every held-out sample; short ones teach the same thing sooner.
    count = r.randint(10, 12) if g.held_out else r.choice([0, 0, 1, 1, 2, 4, 8, 12])
    turns += [filler(g) for _ in range(count)]
    question = g.choose(LEAD_INS) + g.choose(RECALLS).format(asked)
    conversation = g.conversation([*exchanged(turns), Message("user", question)])
    reply = f"Your {asked} is {stated[asked]}."
    about = f"The user told me: {asked} is {stated[asked]}"
    emitted = analysis_and_final(thought(conversation.reasoning_effort, about), reply)
    return Sample("recall", conversation, [list(render(conversation)), emitted], {"answer": reply})


def statement(g: Generator) -> Sample:
    """The turn in which something is told."""
    r = g.random
    thing = r.choice(list(OWNED))
    value = OWNED[thing](r)
    turns = [filler(g) for _ in range(r.choice([0, 0, 1, 2]))]
    said, reply = telling(g, thing, value)
    conversation = g.conversation([*exchanged(turns), Message("user", said)])
    emitted = analysis_and_final(thought(conversation.reasoning_effort, f"The user told me: {thing} is {value}"), reply)
    return Sample("statement", conversation, [list(render(conversation)), emitted], {"answer": reply})


def follow_up(g: Generator) -> Sample:
    """Any question after some turns of others."""
    inner = g.sample(g.choose(["arithmetic", "project", "small talk"]))
    turns = [g.choose([filler, filler, told])(g) for _ in range(g.random.randint(1, 4))]
    *head, asked = inner.conversation.messages
    conversation = replace(inner.conversation, messages=(*head, *exchanged(turns), asked))
    return Sample(inner.task, conversation, [list(render(conversation)), inner.segments[1]], inner.expected)


# Echo: nothing but copying, which every other task needs, of whatever the other tasks are made of.

QUOTES = ["Repeat as a list: {}.", "Quote each word: {}.", "List the words: {}."]
READINGS = ["Read this list: {}.", "Say the words of {}.", "Repeat without quotes: {}."]
ECHOES = ["Repeat after me: {}.", "Say: {}.", "Please repeat: {}.", "Echo this: {}.", "Say exactly this: {}."]


def vocabulary() -> list[str]:
    """Every word of the other tasks."""
    texts = [text for group in FACTS for text in (*group[0], *group[1], group[2])]
    texts += [text for questions, reply in SMALL_TALK for text in (*questions, reply)]
    for kind in KINDS:
        texts += [kind.name, kind.description, *kind.parameters, *kind.questions, kind.reply]
        texts += [str(value) for seed in range(40) for value in kind.outcome(random.Random(seed)).values()]
    return sorted({word for text in texts for word in re.findall(r"[\w-]+", text)} | {*COLOURS, *CURRENCIES, *VERBS})


def echo(g: Generator) -> Sample:
    r = g.random
    draws = (draw_name, lambda r: draw_name(r).lower(), draw_code, *[lambda r: r.choice(VOCABULARY)] * 2)
    words = " ".join(r.choice(draws)(r) for _ in range(r.choice([1, 1, 2, 3, 4])))
    said = f"You said: {words}"
    quoted = json.dumps(words.split())  # lower-case words have other tokens behind a quote than behind a space
    given, requests, reply = g.choose([(words, ECHOES, said), (words, QUOTES, quoted), (quoted, READINGS, said)])
    conversation = g.conversation([Message("user", g.choose(requests).format(given))])
    emitted = analysis_and_final(thought(conversation.reasoning_effort, "The user wants an echo"), reply)
    return Sample("echo", conversation, [list(render(conversation)), emitted], {"answer": reply})


# Tools: a call, the result, and the answer that uses it.


VOCABULARY = vocabulary()


def draw_kinds(g: Generator) -> list[ToolKind]:
    """One to three."""
    return g.random.sample(KINDS, g.choose([1, 2, 2, 3]))


def tools_of(g: Generator, kinds: list[ToolKind]) -> tuple[Tool, ...]:
    return tuple(kind.tool for kind in g.random.sample(kinds, len(kinds)))


def worked_call(g: Generator, kind: ToolKind, effort: str) -> tuple[str, list[list[str]], dict]:
    """A question that needs this tool; the call, the result and the answer as segments; what an examiner looks for."""
    r = g.random

    def draw() -> tuple[str, dict]:
        values = kind.draw(r)
        return g.choose(kind.questions).format(**values), values

    question, arguments = g.question(draw)
    listed = ", ".join(f"{name} is {value}" for name, value in arguments.items())
    analysis = by_effort(
        effort,
        f"Call {kind.name}.",
        f"I need the function {kind.name}: {listed}.",
        f"The user wants something that a function can do. I need the function {kind.name}: {listed}. I call it now.",
    )
    call = function_call(kind.name, json.dumps(arguments))
    emitted = [CHANNEL, "analysis", MESSAGE, analysis, END, START, "assistant", *call]
    outcome = kind.outcome(r)
    returned = [*render_message(result(kind.name, json.dumps(outcome))), START, "assistant"]
    reply = kind.reply.format(**arguments, **outcome)
    expected = {"name": kind.name, "arguments": arguments, "outcome": outcome, "answer": reply}
    return question, [emitted, returned, answer(reply)], expected


def tool_call(g: Generator) -> Sample:
    return with_tools(g, draw_kinds(g))


def with_tools(g: Generator, kinds: list[ToolKind]) -> Sample:
    """A call of the first of these tools, behind an older turn or not."""
    effort = g.effort()
    question, segments, expected = worked_call(g, kinds[0], effort)
    messages = [Message("user", g.choose(LEAD_INS) + question)]
    if g.random.random() < 0.25:
        messages = [*exchanged([filler(g)]), *messages]
    conversation = g.conversation(messages, tools_of(g, kinds), effort)
    return Sample("tool call", conversation, [list(render(conversation)), *segments], expected)


def calls_in_a_row(g: Generator) -> Sample:
    """Four calls with their analysis kept, as no chat renders them: more practice for the tokens of one prompt."""
    kinds = draw_kinds(g)
    sample = with_tools(g, kinds)
    for _ in range(3):
        question, segments, _ = worked_call(g, g.choose(kinds), sample.conversation.reasoning_effort)
        sample.segments += [[*render_message(Message("user", question)), START, "assistant"], *segments]
    sample.task = "calls in a row"
    return sample


def results_in_a_row(g: Generator) -> Sample:
    """Four calls that are given, of which only the answers are to be emitted: more practice in reading results."""
    kinds = draw_kinds(g)
    sample = with_tools(g, kinds)
    prompt, call, returned, reply = sample.segments
    sample.segments = [[*prompt, *call, *returned], reply]
    for _ in range(3):
        question, (call, returned, reply), _ = worked_call(g, g.choose(kinds), sample.conversation.reasoning_effort)
        sample.segments += [[*render_message(Message("user", question)), START, "assistant", *call, *returned], reply]
    sample.task = "results in a row"
    return sample


def tools_unused(g: Generator) -> Sample:
    """Tools are there, and the question needs none."""
    inner = g.sample(g.choose(["arithmetic", "project", "small talk", "recall", "statement"]))
    conversation = replace(inner.conversation, tools=tools_of(g, draw_kinds(g)))
    return Sample(inner.task, conversation, [list(render(conversation)), inner.segments[1]], inner.expected)


TASKS: dict[str, Callable[[Generator], Sample]] = {
    "arithmetic": arithmetic,
    "sums in a row": sums_in_a_row,
    "project": project,
    "small talk": small_talk,
    "recall": recall,
    "statement": statement,
    "echo": echo,
    "tool call": tool_call,
    "calls in a row": calls_in_a_row,
    "results in a row": results_in_a_row,
    "tools unused": tools_unused,
    "follow-up": follow_up,
}

# How often each task is drawn in training.
MIX = {
    "arithmetic": 10,
    "sums in a row": 12,
    "project": 100,
    "small talk": 8,
    "recall": 8,
    "statement": 3,
    "echo": 8,
    "tool call": 10,
    "calls in a row": 12,
    "results in a row": 10,
    "tools unused": 30,
    "follow-up": 50,
}


def training_samples(seed: int) -> Iterator[Sample]:
    """Without end."""
    generator = Generator(seed, held_out=False)
    names, weights = list(MIX), list(MIX.values())
    while True:
        yield generator.sample(generator.random.choices(names, weights)[0])
