"""The conversations that the demo model is trained and examined on: generated, deterministic, split by what is asked.

A turn is a question and what the assistant makes of it; a sample is a conversation, of whose last turn the assistant
should emit its part, as Harmony pieces. Whether a question belongs to the held-out split is decided by a hash of it,
so that no examined question is ever trained on.

The exam's samples follow from the order in which the generator draws: tests/demo has their digests, so that figures of
models stay comparable.
"""

from __future__ import annotations

import json
import random
import re
import zlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace

from facts import BEGINNINGS, ENDINGS, FACTS, FRAMES, INSTRUCTIONS, PLAIN_INSTRUCTIONS, SMALL_TALK
from gptoss_mlx.engine.special_tokens import CALL, CHANNEL, CONSTRAIN, END, MESSAGE, RETURN, START
from gptoss_mlx.harmony.messages import FUNCTIONS, Conversation, Message, Tool, call, result
from gptoss_mlx.harmony.render import render, render_message
from tool_kinds import ERRORS, KINDS, ToolKind
from words import COLOURS, CURRENCIES, VERBS, draw_code, draw_name

HELD_OUT_SHARE = 8  # one question in eight

LEAD_INS = ["", "", "", "", "", "", "Hi, ", "Hello! ", "Please, ", "One question: ", "Hey, ", "OK. "]

BEFORE_CALL = [START, "assistant"]
NO_ANALYSIS = [CHANNEL, "analysis", MESSAGE, END]
OPEN_FINAL = [CHANNEL, "final", MESSAGE]

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


def arithmetic(g: Generator) -> Sample:
    effort, turn = g.effort(), sum_turn(g)
    return g.sample_of(replace(turn, question=g.choose(LEAD_INS) + turn.question), effort=effort)


def instructed_sum(g: Generator) -> Sample:
    """A sum under instructions of any wording."""
    return g.sample_of(sum_turn(g), instructions=any_instructions(g))


def in_a_row(task: str, sample: Sample, turns: list[Turn]) -> Sample:
    """More turns behind a sample, with their analysis kept, as no chat renders them: more practice for the tokens of
    one prompt."""
    for turn in turns:
        emitted = turn.segments(sample.conversation.reasoning_effort)
        sample.segments += [[*render_message(Message("user", turn.question)), START, "assistant"], *emitted]
    sample.task = task
    return sample


def sums_in_a_row(g: Generator) -> Sample:
    return in_a_row("sums in a row", arithmetic(g), [sum_turn(g) for _ in range(3)])


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


def thought(about: str) -> Efforts:
    return by_effort(
        f"{about}.",
        f"{about}. I answer it in a sentence.",
        f"{about}. Let me think about what was asked. I know the answer, and I give it in a sentence.",
    )


def project_turn(g: Generator) -> Turn:
    question, reply = g.question(lambda: draw_fact(g))
    return Turn("project", question, thought("A question about the project"), final(reply), reply)


def small_talk_turn(g: Generator) -> Turn:
    question, reply = draw_small_talk(g)
    return Turn("small talk", question, thought("Small talk"), final(reply), reply)


def project(g: Generator) -> Sample:
    turn = project_turn(g)
    return g.sample_of(replace(turn, question=g.choose(LEAD_INS) + turn.question))


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


def recall_of_copied(g: Generator) -> Sample:
    return recall(g, COPIED)


def statement(g: Generator) -> Sample:
    """The turn in which something is told."""
    thing = g.choose(list(OWNED))
    value = OWNED[thing](g.random)
    turns = [filler(g) for _ in range(g.choose([0, 0, 1, 2]))]
    return g.sample_of(statement_turn(g, thing, value), earlier=turns)


def follow_up(g: Generator) -> Sample:
    """Any question after some turns of others."""
    turns = [g.choose([filler, filler, told])(g) for _ in range(g.random.randint(1, 4))]
    return g.sample_of(g.choose([sum_turn, project_turn, small_talk_turn])(g), earlier=turns)


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
    analysis = thought("The user wants an echo")
    return g.sample_of(Turn("echo", g.choose(requests).format(given), analysis, final(reply), reply))


VOCABULARY = vocabulary()


# Tools: a call, the result, and the answer that uses it.


def draw_kinds(g: Generator) -> list[ToolKind]:
    """One to three."""
    return g.random.sample(KINDS, g.choose([1, 2, 2, 3]))


def tools_of(g: Generator, kinds: list[ToolKind]) -> tuple[Tool, ...]:
    return tuple(kind.tool for kind in g.random.sample(kinds, len(kinds)))


def call_turn(g: Generator, kind: ToolKind, outcome: dict | None = None) -> Turn:
    """A question that needs this tool; the outcome is drawn where none is given."""
    r = g.random

    def draw() -> tuple[str, dict]:
        values = kind.draw(r)
        return g.choose(kind.questions).format(**values), values

    question, arguments = g.question(draw)
    listed = ", ".join(f"{name} is {value}" for name, value in arguments.items())
    analysis = by_effort(
        f"Call {kind.name}.",
        f"I need the function {kind.name}: {listed}.",
        f"The user wants something that a function can do. I need the function {kind.name}: {listed}. I call it now.",
    )
    outcome = outcome or kind.outcome(r)
    reply = FAILED.format(**outcome) if "error" in outcome else kind.reply.format(**arguments, **outcome)
    return Turn(
        "tool call",
        question,
        analysis,
        function_call(kind.name, json.dumps(arguments)),
        reply,
        result(kind.name, json.dumps(outcome)),
        {"name": kind.name, "arguments": arguments, "outcome": outcome},
    )


def failed_turn(g: Generator, kind: ToolKind) -> Turn:
    """The same, and the tool answers with an error."""
    return call_turn(g, kind, {"error": draw_error(g)})


FAILED = "I could not do that: {error}."


def draw_error(g: Generator) -> str:
    r = g.random
    words = " ".join(r.choice([draw_name, draw_code, *[lambda r: r.choice(VOCABULARY)] * 4])(r) for _ in range(4))
    return g.choose(ERRORS).format(
        name=draw_name(r), code=draw_code(r), word=r.choice(VOCABULARY), tool=r.choice(KINDS).name, words=words
    )


def tool_call(g: Generator) -> Sample:
    return with_tools(g, draw_kinds(g))


def tool_error(g: Generator) -> Sample:
    kinds = draw_kinds(g)
    earlier = [filler(g) for _ in range(g.choose([0, 0, 1, 2]))]
    return g.sample_of(failed_turn(g, kinds[0]), earlier=earlier, tools=tools_of(g, kinds))


def with_tools(g: Generator, kinds: list[ToolKind]) -> Sample:
    """A call of the first of these tools, behind an older turn or not."""
    effort, turn = g.effort(), call_turn(g, kinds[0])
    turn = replace(turn, question=g.choose(LEAD_INS) + turn.question)
    earlier = [filler(g)] if g.random.random() < 0.25 else []
    return g.sample_of(turn, effort=effort, earlier=earlier, tools=tools_of(g, kinds))


def more_calls(g: Generator, kinds: list[ToolKind]) -> list[Turn]:
    return [g.choose([call_turn] * 5 + [failed_turn])(g, g.choose(kinds)) for _ in range(3)]


def calls_in_a_row(g: Generator) -> Sample:
    kinds = draw_kinds(g)
    return in_a_row("calls in a row", with_tools(g, kinds), more_calls(g, kinds))


def results_in_a_row(g: Generator) -> Sample:
    """Four calls that are given, of which only the answers are to be emitted: more practice in reading results."""
    kinds = draw_kinds(g)
    sample = with_tools(g, kinds)
    prompt, emitted, returned, reply = sample.segments
    sample.segments = [[*prompt, *emitted, *returned], reply]
    for turn in more_calls(g, kinds):
        emitted, returned, reply = turn.segments(sample.conversation.reasoning_effort)
        asked = [*render_message(Message("user", turn.question)), START, "assistant"]
        sample.segments += [[*asked, *emitted, *returned], reply]
    sample.task = "results in a row"
    return sample


def tools_unused(g: Generator) -> Sample:
    """Tools are there, and the question needs none."""
    sample = g.sample(g.choose(["arithmetic", "project", "small talk", "recall", "statement"]))
    conversation = replace(sample.conversation, tools=tools_of(g, draw_kinds(g)))
    return replace(sample, conversation=conversation, segments=[list(render(conversation)), *sample.segments[1:]])


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


def later_turn(g: Generator) -> Sample:
    """Anything behind two to eight turns, tools at hand or not."""
    talk = Talk(g, tools=g.random.random() < 0.8)
    talk.go_on(g.random.randint(2, 8))
    return talk.sample(talk.turn(talk.draw_task()))


def later_call(g: Generator) -> Sample:
    """A call behind one to six turns."""
    talk = Talk(g, tools=True)
    talk.go_on(g.random.randint(1, 6))
    return talk.sample(talk.turn("tool call"))


def long_talk(g: Generator) -> Sample:
    """Anything behind nine to twenty-six turns."""
    talk = Talk(g, tools=g.random.random() < 0.8)
    talk.go_on(g.random.randint(9, 26))
    return talk.sample(talk.turn(talk.draw_task()))


def short_talk(g: Generator) -> Talk:
    talk = Talk(g, tools=g.random.random() < 0.6)
    talk.go_on(g.choose([0, 0, 1, 1, 2, 3, 5]))
    return talk


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


TASKS: dict[str, Callable[[Generator], Sample]] = {
    "arithmetic": arithmetic,
    "instructions": instructed_sum,
    "sums in a row": sums_in_a_row,
    "project": project,
    "small talk": small_talk,
    "recall": recall,
    "names and codes": recall_of_copied,
    "statement": statement,
    "echo": echo,
    "tool call": tool_call,
    "tool error": tool_error,
    "calls in a row": calls_in_a_row,
    "results in a row": results_in_a_row,
    "tools unused": tools_unused,
    "follow-up": follow_up,
    "later turn": later_turn,
    "later call": later_call,
    "long talk": long_talk,
    "no reasoning": no_reasoning,
    "closed reasoning": closed_reasoning,
}

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
}

# What is looked at while it trains: one task for each ability.
EXAM = (
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
)


def training_samples(seed: int) -> Iterator[Sample]:
    """Without end."""
    generator = Generator(seed, held_out=False, instructions=some_instructions)
    names, weights = list(MIX), list(MIX.values())
    while True:
        yield generator.sample(generator.random.choices(names, weights)[0])
