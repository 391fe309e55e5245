#!/usr/bin/env python3
"""What each recipe costs the demo model: a table in Markdown, of sizes, of predictions and of the held-out evaluation.

`python examples/train_demo/recipes.py [CHECKPOINT] --count 200`. KL, perplexity and the share of equal likeliest tokens
are of held-out conversations with their markup, every token of them; the rest is `evaluate.py`'s.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from conversations import Generator
from evaluate import HELD_OUT, SEED, examine
from gptoss_convert import RECIPES, convert
from gptoss_convert.fidelity import predictions
from gptoss_convert.sources import Source
from gptoss_mlx import load
from gptoss_mlx.demo import CHECKPOINT
from gptoss_mlx.engine.tokenizer import Tokenizer
from gptoss_mlx.harmony.render import encode

TOKENS = 8192  # of conversations
PARTS = ("arithmetic", "recall", "tool call", "tool result", "tools unused", "project")  # of the evaluation


def held_out_ids(tokenizer: Tokenizer) -> np.ndarray:
    """Held-out conversations of every task, one after the other."""
    generator = Generator(SEED, held_out=True)
    ids: list[int] = []
    while len(ids) <= TOKENS:
        for task in dict.fromkeys(HELD_OUT[name].task for name in PARTS):
            ids += encode([piece for segment in generator.sample(task).segments for piece in segment], tokenizer)
    return np.array(ids[: TOKENS + 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=CHECKPOINT)
    parser.add_argument("--count", type=int, default=200, help="prompts of each task")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), help="names, or .toml files")
    args = parser.parse_args()
    tokenizer = Tokenizer.load(args.checkpoint)
    ids = held_out_ids(tokenizer)
    titles = ["recipe", "size", "bits per weight", "KL", "KL, 99th percentile", "perplexity", "same top token", *PARTS]
    print(f"| {' | '.join(titles)} |\n|{' --- |' * len(titles)}")
    for recipe in args.recipes:
        with tempfile.TemporaryDirectory() as root:
            folder = Path(root, "model")
            report = convert(args.checkpoint, folder, recipe)
            found = predictions(Source(args.checkpoint), folder, ids)
            cells = [
                f"`{report.recipe}`",
                f"{report.output_bytes / 1e6:.2f} MB",
                f"{report.bits_per_weight:.2f}",
                f"{found.kl_mean:.5f}",
                f"{found.kl_p99:.4f}",
                f"{found.model_perplexity:.4f}",
                f"{100 * found.same_top:.2f} %",
            ]
            model = load(folder)
            for name in PARTS:
                right = [ok for _, ok, _ in examine(model, tokenizer, name, args.count)]
                cells.append(f"{100 * sum(right) / len(right):.1f} %")
        print(f"| {' | '.join(cells)} |", flush=True)
    print(f"\nperplexity of the source: {found.source_perplexity:.4f}")


if __name__ == "__main__":
    main()
