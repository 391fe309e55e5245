"""Logits -> the next token id, and how likely it was. Knows nothing about what the ids mean."""

from __future__ import annotations

import math
import secrets
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from ..errors import GptOssError


@dataclass(frozen=True)
class Sampling:
    """How to choose a token. The defaults are what the publisher recommends: the distribution as it is.

    Applied in this order: repetition penalty, temperature, top-k, top-p, min-p.
    """

    temperature: float = 1.0
    """0 is greedy: always the likeliest token."""
    top_p: float = 1.0
    """Keep the likeliest tokens until their probabilities sum to this."""
    top_k: int = 0
    """Keep this many of the likeliest tokens; 0 keeps all."""
    min_p: float = 0.0
    """Drop tokens less likely than this fraction of the likeliest one."""
    repetition_penalty: float = 1.0
    """Above 1, makes tokens that have occurred less likely (arXiv 1909.05858)."""
    seed: int | None = None
    """Same seed, same tokens; None is a different one each time."""

    def __post_init__(self) -> None:
        def require(name: str, ok: bool, range_: str) -> None:
            if not ok:
                raise GptOssError(f"{name} is {getattr(self, name)}, not {range_}")

        require("temperature", 0 <= self.temperature < math.inf, "0 or more")
        require("top_p", 0 < self.top_p <= 1, "above 0 and at most 1")
        require("top_k", self.top_k >= 0, "0 or more")
        require("min_p", 0 <= self.min_p <= 1, "from 0 to 1")
        require("repetition_penalty", 0 < self.repetition_penalty < math.inf, "above 0")
        require("seed", self.seed is None or 0 <= self.seed < 2**64, "from 0 to 2^64 - 1")


class Sampler:
    """Chooses token after token of one answer. A repetition penalty counts `context` as having occurred.

    With `logprobs`, `next_logprobs` says how likely each of them was, and that many of the likeliest tokens.
    """

    def __init__(self, sampling: Sampling, context: Iterable[int] = (), logprobs: int | None = None):
        self.sampling = sampling
        self._logprobs = logprobs
        self._waiting: deque[tuple[mx.array, mx.array]] = deque()
        self._key = mx.random.key(secrets.randbits(64) if sampling.seed is None else sampling.seed)
        self._context = list(context)
        self._seen: mx.array | None = None

    def __call__(self, logits: mx.array, allowed: mx.array | None = None) -> mx.array:
        """Logits [1, vocabulary] -> the chosen id [1], not yet evaluated; one of `allowed`, booleans [vocabulary]."""
        s = self.sampling
        logits = of_model = logits.astype(mx.float32)
        if allowed is not None:
            logits = mx.where(allowed, logits, -mx.inf)
        if s.repetition_penalty != 1:
            logits = self._penalize(logits)
        if s.temperature == 0:
            chosen = mx.argmax(logits, axis=-1)
        else:
            self._key, key = mx.random.split(self._key)
            chosen = mx.random.categorical(keep_likely(logits / s.temperature, s), key=key)
        if self._seen is not None:
            self._seen[:, chosen] = True
        if self._logprobs is not None:
            self._waiting.append(_logprobs(of_model, chosen, self._logprobs))
        return chosen

    def next_logprobs(self) -> tuple[float, list[tuple[int, float]]]:
        """Of the first chosen token that was not asked about yet: the natural logarithm of its probability, as the
        model has it, and the likeliest ids with theirs, the likeliest first."""
        ids, logprobs = self._waiting.popleft()
        # As lists at once: an element of an array is computed after all that the device was given to do since.
        lists: Any = ids.tolist(), logprobs.tolist()
        (_, logprob), *likeliest = zip(*lists, strict=True)
        return logprob, sorted(likeliest, key=lambda pair: (-pair[1], pair[0]))

    def _penalize(self, logits: mx.array) -> mx.array:
        if self._seen is None:
            self._seen = mx.zeros(logits.shape, mx.bool_)
            if self._context:
                self._seen[:, mx.array(self._context)] = True
        penalty = self.sampling.repetition_penalty
        return mx.where(self._seen, mx.where(logits > 0, logits / penalty, logits * penalty), logits)


def _logprobs(logits: mx.array, chosen: mx.array, count: int) -> tuple[mx.array, mx.array]:
    """The ids [1 + count] of the chosen token and the likeliest ones, with their log-probabilities."""
    below = logits[0] - mx.max(logits)
    # The likeliest are added last: a sum that begins with 1 loses what thousands of small numbers come to.
    total = mx.sum(mx.where(below < 0, mx.exp(below), 0)) + mx.sum(below == 0)
    count = min(count, below.size)
    ids = chosen
    if count:
        ids = mx.concatenate([ids, mx.argpartition(-below, kth=count - 1)[:count]])
    logprobs = below[ids] - mx.log(total)
    mx.async_eval(ids, logprobs)  # beside the token, before the one after it is computed
    return ids, logprobs


def keep_likely(logits: mx.array, sampling: Sampling) -> mx.array:
    """Logits [1, vocabulary] with those that top-k, top-p and min-p exclude at minus infinity."""
    vocabulary = logits.shape[-1]
    if 0 < sampling.top_k < vocabulary:
        floor = mx.min(mx.topk(logits, sampling.top_k), axis=-1, keepdims=True)
        logits = mx.where(logits < floor, -mx.inf, logits)
    if sampling.top_p < 1:
        ranked = -mx.sort(-logits, axis=-1)
        probabilities = mx.softmax(ranked, axis=-1)
        # A token stays if those above it sum to less than top_p: the likeliest one always does.
        stays = mx.cumsum(probabilities, axis=-1, inclusive=False) < sampling.top_p
        floor = mx.min(mx.where(stays, ranked, mx.inf), axis=-1, keepdims=True)
        logits = mx.where(logits < floor, -mx.inf, logits)
    if sampling.min_p > 0:
        floor = mx.max(logits, axis=-1, keepdims=True) + math.log(sampling.min_p)
        logits = mx.where(logits < floor, -mx.inf, logits)
    return logits
