"""Functions: a call, the result, and the answer that uses it."""

from __future__ import annotations

import json
from dataclasses import replace

from generator import LEAD_INS, VOCABULARY, Generator, Sample, Turn, by_effort, function_call, in_a_row, task
from gptoss_mlx.engine.special_tokens import START
from gptoss_mlx.harmony.messages import Message, Tool, result
from gptoss_mlx.harmony.render import render, render_message
from questions import filler
from tool_kinds import ERRORS, KINDS, ToolKind
from words import draw_code, draw_name


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


@task("tool call")
def tool_call(g: Generator) -> Sample:
    return with_tools(g, draw_kinds(g))


@task("tool error")
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


@task("calls in a row")
def calls_in_a_row(g: Generator) -> Sample:
    kinds = draw_kinds(g)
    return in_a_row("calls in a row", with_tools(g, kinds), more_calls(g, kinds))


@task("results in a row")
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


@task("tools unused")
def tools_unused(g: Generator) -> Sample:
    """Tools are there, and the question needs none."""
    sample = g.sample(g.choose(["arithmetic", "project", "small talk", "recall", "statement"]))
    conversation = replace(sample.conversation, tools=tools_of(g, draw_kinds(g)))
    return replace(sample, conversation=conversation, segments=[list(render(conversation)), *sample.segments[1:]])
