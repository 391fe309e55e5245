"""Several conversations in one step of the network: the same tokens as alone, in fewer steps."""

from itertools import zip_longest

import pytest

import gptoss_mlx
from gptoss_mlx import Sampling
from gptoss_mlx.engine.sampling import Sampler
from gptoss_mlx.engine.together import Together
from gptoss_mlx.kernels import native, why_not_native

pytestmark = pytest.mark.skipif(not native(), reason=str(why_not_native()))

PROMPTS = [
    "What is 12 + 30?",
    "My locker code is 4711. Remember it, and say it.",
    "Hello there.",
    "A colour?",
    "40 - 7?",
]


@pytest.fixture(scope="module")
def model(demo_folder):
    return gptoss_mlx.load(demo_folder)


@pytest.fixture
def steps(model, monkeypatch):
    """How many conversations each step of the network reads."""
    counts = []
    read, read_alone = model.network.hidden_together, model.network.hidden

    def counted(ids, caches):
        counts.append(len(ids))
        return read(ids, caches)

    def counted_alone(ids, cache):
        counts.extend([1] if ids.shape[1] == 1 else [])  # a longer one is a prompt
        return read_alone(ids, cache)

    monkeypatch.setattr(model.network, "hidden_together", counted)
    monkeypatch.setattr(model.network, "hidden", counted_alone)
    monkeypatch.setattr(model, "together", Together(model.network))
    return counts


def answer(model, number, tokens=40):
    """The ids of a conversation, one by one, with a sampler of its own."""
    cache = model.make_cache()
    logits = model.prefill(model.tokenizer.encode(PROMPTS[number % len(PROMPTS)]), cache)
    sampling = Sampling(temperature=0 if number % 2 else 1, seed=number)
    yield from model.decode(logits, cache, sampler=Sampler(sampling), max_tokens=tokens, stop=())


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_the_tokens_are_those_of_each_alone(model, steps, count):
    together, model.together = model.together, None
    alone = [list(answer(model, number)) for number in range(count)]
    model.together = together
    steps.clear()
    turns = list(zip_longest(*(answer(model, number) for number in range(count))))
    assert [list(ids) for ids in zip(*turns, strict=True)] == alone
    assert sum(steps) == 39 * count  # the last token of each is not read
    assert len(steps) <= 39 * -(-count // model.network.at_once)


def test_one_that_ends_or_is_closed_is_not_read_for_the_others(model, steps):
    first, second, third = (answer(model, number, tokens=tokens) for number, tokens in enumerate((40, 5, 40)))
    expected = list(answer(model, 0))
    steps.clear()
    got = []
    for turn, id_ in enumerate(first):
        got.append(id_)
        if turn < 10:
            next(third)
        if turn == 10:
            third.close()
        next(second, None)
    assert got == expected
    assert steps == [3] * 4 + [2] * 6 + [1] * 29


def test_a_conversation_without_a_turn_for_a_while_goes_on_where_it_was(model, steps):
    expected = [list(answer(model, number)) for number in range(2)]
    first, second = (answer(model, number) for number in range(2))
    got = [[], []]
    for _ in range(10):
        got[0].append(next(first))
    for _ in range(3):
        got[1].append(next(second))
    got[0] += first
    got[1] += second
    assert got == expected
