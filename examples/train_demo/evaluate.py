#!/usr/bin/env python3
"""Examine a converted demo model on held-out prompts: `python examples/train_demo/evaluate.py FOLDER --count 200`.

Greedy, exact match, and the model has to stop by itself. FOLDER is what `gptoss-mlx convert` made.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from conversations import Generator
from generator import Instructing, Sample, any_instructions, plain_instructions, some_instructions
from gptoss_mlx import Model, load
from gptoss_mlx.engine.tokenizer import Tokenizer
from gptoss_mlx.evaluation.held_out import MAX_TOKENS
from gptoss_mlx.evaluation.prompts import Call, Reply, is_right, reply_to
from gptoss_mlx.harmony.render import encode

SEED = 2026


@dataclass(frozen=True)
class Part:
    """Held-out samples of a task, and the share of them that has to be answered right, where one was promised."""

    task: str
    threshold: float | None = None
    instructions: Instructing = plain_instructions
    of_result: bool = False
    """Whether what is said of a call's result is judged, instead of the call."""


HELD_OUT = {
    "arithmetic": Part("arithmetic", 0.95),
    "recall": Part("recall", 0.95),
    "tool call": Part("tool call", 0.98),
    "tool result": Part("tool call", 0.98, of_result=True),
    "tools unused": Part("tools unused", 0.95),
    "project": Part("project", 0.95),
    "arithmetic with instructions": Part("arithmetic", 0.95, any_instructions),
    "recall with instructions": Part("recall", 0.95, any_instructions),
    "names and codes": Part("names and codes", 0.95),
    "names and codes with instructions": Part("names and codes", 0.90, any_instructions),
    "tool call with instructions": Part("tool call", 0.95, any_instructions),
    "tool result with instructions": Part("tool call", 0.95, any_instructions, of_result=True),
    "tools unused with instructions": Part("tools unused", 0.95, any_instructions),
    "project with instructions": Part("project", 0.95, any_instructions),
    "tool error": Part("tool error", 0.90, some_instructions, of_result=True),
    "later turn": Part("later turn", 0.95, some_instructions),
    "later call": Part("later call", 0.95, some_instructions),
    "long talk": Part("long talk", 0.95, some_instructions),
    "no reasoning": Part("no reasoning", 0.95, some_instructions),
    "closed reasoning": Part("closed reasoning", 0.95, some_instructions),
    "small talk": Part("small talk"),
    "statement": Part("statement"),
    "follow-up": Part("follow-up"),
    "echo": Part("echo"),
    "first line": Part("first line", None, some_instructions),
    "memory": Part("memory", None, some_instructions),
}
THRESHOLDS = {name: part.threshold for name, part in HELD_OUT.items() if part.threshold is not None}


def samples(name: str, count: int) -> list[Sample]:
    """The first `count` samples of a part: always the same ones."""
    generator = Generator(SEED, held_out=True, instructions=HELD_OUT[name].instructions)
    return [generator.sample(HELD_OUT[name].task) for _ in range(count)]


def prompt_of(name: str, sample: Sample) -> list[str]:
    """The pieces of a prompt: of a sample, or where a call's result is judged, of what follows the result."""
    segments = sample.segments[: 3 if HELD_OUT[name].of_result else 1]
    return [piece for segment in segments for piece in segment]


def answer_of(name: str, sample: Sample) -> str | Call:
    """What the reply has to be."""
    if HELD_OUT[name].of_result or "name" not in sample.expected:
        return sample.expected["answer"]
    return Call(sample.expected["name"], sample.expected["arguments"])


def examine(model: Model, tokenizer: Tokenizer, name: str, count: int) -> Iterator[tuple[Sample, bool, Reply]]:
    for sample in samples(name, count):
        reply = reply_to(model, tokenizer, encode(prompt_of(name, sample), tokenizer), MAX_TOKENS)
        yield sample, is_right(reply, answer_of(name, sample)), reply


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=200, help="prompts of each part")
    parser.add_argument("--parts", nargs="+", choices=HELD_OUT, default=list(HELD_OUT), metavar="PART")
    parser.add_argument("--show-wrong", action="store_true")
    args = parser.parse_args()
    model, tokenizer = load(args.folder), Tokenizer.load(args.folder)
    for name in args.parts:
        outcomes = list(examine(model, tokenizer, name, args.count))
        right = sum(ok for _, ok, _ in outcomes)
        threshold = f"  threshold {THRESHOLDS[name]:.0%}" if name in THRESHOLDS else ""
        print(f"{name:34} {right}/{len(outcomes)} = {right / len(outcomes):.1%}{threshold}", flush=True)
        if args.show_wrong:
            for sample, ok, reply in outcomes:
                if not ok:
                    print(f"  {sample.conversation.messages[-1].content!r}: {reply}, expected {sample.expected}")


if __name__ == "__main__":
    main()
