"""Logits -> id: greedy, the filters, the penalty, seeds; against NumPy on the same distribution."""

import mlx.core as mx
import numpy as np
import pytest

from gptoss_mlx.engine.sampling import Sampler, Sampling, keep_likely
from gptoss_mlx.errors import GptOssError

LOGITS = mx.array([[0.1, 3.0, -1.0, 2.0, 2.5, -4.0, 0.0, 1.0]])
PROBABILITIES = np.exp(np.array(LOGITS[0])) / np.exp(np.array(LOGITS[0])).sum()
RANKED = np.argsort(-PROBABILITIES)


def kept(**options):
    return set(np.flatnonzero(np.isfinite(np.array(keep_likely(LOGITS, Sampling(**options)))[0])).tolist())


def draw(count, logits=LOGITS, **options):
    sampler = Sampler(Sampling(**options))
    return [sampler(logits).item() for _ in range(count)]


def test_greedy():
    assert draw(3, temperature=0) == [1, 1, 1]


def test_the_default_draws_from_the_distribution_as_it_is():
    counts = np.bincount(draw(2000, seed=1), minlength=8) / 2000
    assert np.abs(counts - PROBABILITIES).max() < 0.03


def test_temperature_sharpens():
    assert draw(400, temperature=0.5, seed=2).count(1) > draw(400, temperature=2.0, seed=2).count(1)


@pytest.mark.parametrize("k", [1, 3, 7, 8, 100])
def test_top_k(k):
    assert kept(top_k=k) == set(RANKED[:k].tolist())


@pytest.mark.parametrize("p", [0.01, 0.3, 0.5, 0.8, 0.99, 1.0])
def test_top_p_keeps_the_fewest_that_reach_it(p):
    count = 8 if p == 1.0 else int(np.searchsorted(np.cumsum(PROBABILITIES[RANKED]), p)) + 1
    assert kept(top_p=p) == set(RANKED[:count].tolist())


@pytest.mark.parametrize("p", [0.05, 0.3, 1.0])
def test_min_p(p):
    assert kept(min_p=p) == set(np.flatnonzero(p * PROBABILITIES.max() <= PROBABILITIES).tolist())


def test_filters_combine():
    assert kept(top_k=4, min_p=0.5) == {1, 4}
    assert set(draw(200, top_k=2, seed=3)) == {1, 4}


def test_repetition_penalty_counts_the_context_and_what_was_drawn():
    sampler = Sampler(Sampling(temperature=0, repetition_penalty=10.0), context=[1])
    assert [sampler(LOGITS).item() for _ in range(3)] == [4, 3, 7]


def test_repetition_penalty_lowers_negative_logits_too():
    logits = mx.array([[-1.0, -1.5]])
    sampler = Sampler(Sampling(temperature=0, repetition_penalty=2.0), context=[0])
    assert sampler(logits).item() == 1


def test_same_seed_same_tokens():
    assert draw(50, seed=7) == draw(50, seed=7)
    assert draw(50, seed=7) != draw(50, seed=8)
    assert draw(50) != draw(50)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"min_p": 1.5},
        {"min_p": -0.5},
        {"repetition_penalty": 0.0},
        {"seed": -1},
    ],
)
def test_impossible_settings_are_named(options):
    with pytest.raises(GptOssError, match=next(iter(options))):
        Sampling(**options)
