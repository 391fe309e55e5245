"""How likely the sampled tokens were, against NumPy's log-softmax of the model's own logits."""

import mlx.core as mx
import numpy as np
import pytest

import gptoss_mlx
from gptoss_mlx.engine.sampling import Sampler, Sampling

PROMPT = [5, 300, 12, 7, 44]


@pytest.fixture(scope="module")
def model(demo_folder):
    return gptoss_mlx.load(demo_folder)


class Even:
    """A constraint: even ids alone."""

    def __init__(self, vocabulary):
        self._mask = mx.arange(vocabulary) % 2 == 0

    def allowed(self):
        return self._mask

    def accept(self, id_):
        pass


def sampled(model, count, *, logprobs=None, constraint=None, **sampling):
    """Ids, and what is said of each as it comes."""
    sampler = Sampler(Sampling(**{"temperature": 0} | sampling), context=PROMPT, logprobs=logprobs)
    cache = model.make_cache()
    logits = model.prefill(PROMPT, cache)
    ids, said = [], []
    for id_ in model.decode(logits, cache, sampler=sampler, max_tokens=count, stop=(), constraint=constraint):
        ids.append(id_)
        if logprobs is not None:
            said.append(sampler.next_logprobs())
    return ids, said


def log_softmax(model, ids):
    """Of the positions before each of `ids`, which follow the prompt."""
    cache = model.make_cache()
    steps = [model.prefill(PROMPT, cache), *(model(mx.array([[id_]]), cache)[:, 0] for id_ in ids[:-1])]
    logits = np.array(mx.concatenate(steps).astype(mx.float32)).astype(np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 1.5, "seed": 3},
        {"temperature": 1, "seed": 4, "top_k": 3, "top_p": 0.9},
        {"repetition_penalty": 1.7},
    ],
    ids=str,
)
def test_they_are_those_of_the_model_before_temperature_filters_and_penalties(model, look_ahead, ahead, options):
    look_ahead(ahead)
    ids, said = sampled(model, 12, logprobs=5, **options)
    for id_, expected, (logprob, top) in zip(ids, log_softmax(model, ids), said, strict=True):
        assert abs(logprob - expected[id_]) < 1e-5
        assert [value for _, value in top] == sorted((value for _, value in top), reverse=True)
        assert np.abs(np.array([value for _, value in top]) - np.sort(expected)[::-1][:5]).max() < 1e-5
        assert np.abs(np.array([value for _, value in top]) - expected[[id_ for id_, _ in top]]).max() < 1e-5
        assert len({id_ for id_, _ in top}) == 5


def test_under_a_constraint_they_are_the_models_too(model):
    ids, said = sampled(model, 8, logprobs=2, constraint=Even(model.config.vocab_size))
    assert not any(id_ % 2 for id_ in ids)
    for id_, expected, (logprob, top) in zip(ids, log_softmax(model, ids), said, strict=True):
        assert abs(logprob - expected[id_]) < 1e-5
        assert np.abs(np.array([value for _, value in top]) - np.sort(expected)[::-1][:2]).max() < 1e-5


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("options", [{}, {"temperature": 1, "seed": 5}], ids=str)
def test_they_change_no_token(model, look_ahead, ahead, options):
    look_ahead(ahead)
    assert sampled(model, 20, logprobs=20, **options)[0] == sampled(model, 20, **options)[0]


def test_the_sampled_token_alone(model):
    _, said = sampled(model, 3, logprobs=0)
    assert [top for _, top in said] == [[], [], []]


def test_more_than_there_are():
    sampler = Sampler(Sampling(temperature=0), logprobs=20)
    assert int(sampler(mx.log(mx.array([[0.25, 0.5, 0.25]])))) == 1
    logprob, top = sampler.next_logprobs()
    assert logprob == pytest.approx(np.log(0.5))
    assert [id_ for id_, _ in top] == [1, 0, 2]
    assert np.exp([value for _, value in top]) == pytest.approx([0.5, 0.25, 0.25])


def test_half_precision_is_no_hindrance():
    """Logits of a GPU: what is computed of them is not rounded to their precision."""
    logits = (mx.arange(1000) / 500).astype(mx.bfloat16)[None]
    sampler = Sampler(Sampling(temperature=0), logprobs=1)
    chosen = int(sampler(logits))
    exact = np.array(logits.astype(mx.float32))[0].astype(np.float64)
    assert sampler.next_logprobs()[0] == pytest.approx(exact[chosen] - np.log(np.exp(exact).sum()), abs=1e-5)
