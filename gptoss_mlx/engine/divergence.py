"""How far one model's predictions are from another's: the Kullback-Leibler divergence, in nats."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

Sums = tuple[np.ndarray, ...]


@np.errstate(over="ignore", invalid="ignore")
def kl_divergence(
    parts: Iterable[np.ndarray],
    run: Callable[[Callable[[np.ndarray], Sums], np.ndarray], Sums] = lambda function, logits: function(logits),
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits (or logarithms of probabilities) of a reference and of a model for n tokens, float32 [n, 2, columns], the
    columns of the vocabulary part by part, so that they need never be in memory all at once.

    Returns the divergence of the model from the reference, sum p (log p - log q), float64 [n]; and of both, [n, 2], the
    logarithm of the sum of exp(logit), and the likeliest token. `run` calls a function on the rows of a part, with
    threads perhaps. What is not finite in the logits is not finite in what is returned.
    """
    sums, start = [], 0
    for part in parts:
        largest, top, total, shift = run(_sums, part)
        sums.append((largest, top + start, total, shift))
        start += part.shape[-1]
    largest, tops, total, shift = map(np.array, zip(*sums, strict=True))  # [parts, n, 2]; shift is [parts, n]
    part_of_top = largest.argmax(axis=0)[None]
    highest = largest.max(axis=0)
    scale = np.exp(largest - highest)
    total = (total * scale).sum(axis=0)
    log_total = highest + np.log(total)
    # sum p (log p - log q), where log p is a logit less log_total.
    shift = (shift * scale[..., 0]).sum(axis=0) / total[:, 0]
    kl = np.maximum(shift - log_total[:, 0] + log_total[:, 1], 0)
    return kl, log_total, np.take_along_axis(tops, part_of_top, axis=0)[0]


@np.errstate(over="ignore", invalid="ignore")
def _sums(logits: np.ndarray) -> Sums:
    """Logits [n, 2, columns] of reference and model -> [n, 2]: the largest, where it is, and the sum of
    exp(logit - largest); [n]: the reference's sum of exp(logit - largest) * (logit - the model's logit)."""
    top = logits.argmax(axis=-1)
    largest = np.take_along_axis(logits, top[..., None], axis=-1)
    weights = np.exp(logits - largest)
    shift = weights[:, 0] * (logits[:, 0] - logits[:, 1])
    return largest[..., 0].astype(np.float64), top, *(x.sum(axis=-1, dtype=np.float64) for x in (weights, shift))
