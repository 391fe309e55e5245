"""Logits -> the next token id. Knows nothing about what the ids mean."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable
from dataclasses import dataclass

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
    """Chooses token after token of one answer. A repetition penalty counts `context` as having occurred."""

    def __init__(self, sampling: Sampling, context: Iterable[int] = ()):
        self.sampling = sampling
        self._key = mx.random.key(secrets.randbits(64) if sampling.seed is None else sampling.seed)
        self._context = list(context)
        self._seen: mx.array | None = None

    def __call__(self, logits: mx.array, allowed: mx.array | None = None) -> mx.array:
        """Logits [1, vocabulary] -> the chosen id [1], not yet evaluated; one of `allowed`, booleans [vocabulary]."""
        s = self.sampling
        logits = logits.astype(mx.float32)
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
        return chosen

    def _penalize(self, logits: mx.array) -> mx.array:
        if self._seen is None:
            self._seen = mx.zeros(logits.shape, mx.bool_)
            if self._context:
                self._seen[:, mx.array(self._context)] = True
        penalty = self.sampling.repetition_penalty
        return mx.where(self._seen, mx.where(logits > 0, logits / penalty, logits * penalty), logits)


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
