"""Conversations -> batches of ids and of their weights in the loss. Without PyTorch: several processes do this work."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

import settings
from conversations import training_samples
from generator import Sample
from gptoss_mlx.engine.special_tokens import START
from gptoss_mlx.engine.tokenizer import Tokenizer
from gptoss_mlx.harmony.render import encode

Row = tuple[list[int], list[float]]


def batches_of(tokenizer: Tokenizer, seed: int, tokens: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of about `tokens`, of samples of about one length, without end: what `padded` gives."""
    waiting: dict[int, list[Row]] = {length: [] for length in settings.LENGTHS}
    for sample in training_samples(seed):
        ids, weights = row_of(sample, tokenizer)
        length = next((length for length in settings.LENGTHS if len(ids) <= length), None)
        if length is None:
            continue
        queue = waiting[length]
        queue.append((ids, weights))
        if len(queue) * length >= tokens:
            yield padded(queue, length)
            queue.clear()


def row_of(sample: Sample, tokenizer: Tokenizer) -> Row:
    """Ids, and the weight of each in the loss: 1 for what the assistant emits."""
    ids: list[int] = []
    weights: list[float] = []
    for i, segment in enumerate(sample.segments):
        part = encode(segment, tokenizer)
        ids += part
        weights += [1.0] * len(part) if i % 2 == 1 else weights_of_prompt(part, tokenizer)
    return ids, weights


def weights_of_prompt(ids: list[int], tokenizer: Tokenizer) -> list[float]:
    """Nothing for earlier replies of the assistant: a chat drops their analysis, so they are no example to follow."""
    start, assistant = encode([START, "assistant"], tokenizer)
    weights, earlier = [], False
    for i, id_ in enumerate(ids):
        if id_ == start:
            earlier = False
        weights.append(0.0 if earlier else settings.PROMPT_WEIGHT)
        if id_ == assistant and i and ids[i - 1] == start:
            earlier = True
    return weights


def padded(rows: list[Row], length: int) -> tuple[np.ndarray, np.ndarray]:
    """int64 ids and float32 weights [B, length]; what is padded is 0 in both."""
    ids, weights = np.zeros((len(rows), length), np.int64), np.zeros((len(rows), length), np.float32)
    for i, row in enumerate(rows):
        ids[i, : len(row[0])], weights[i, : len(row[0])] = row
    return ids, weights
