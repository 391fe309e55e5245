"""Experts read before their layer asks for them, and results that are computed late: a pool that gives no slot away."""

from collections.abc import Iterable
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from checkpoints import config_of, write_checkpoint
from gptoss_convert import convert
from gptoss_mlx import load
from gptoss_mlx.memory.plan import EngineConfig

WHOLE = EngineConfig(context=4096, kv_bits=16, prefill_chunk=64)
IDS = [[7, 30, 200], [5], [9], [11], [13], [5], [240], [1], [9]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("reading-ahead")
    convert(write_checkpoint(root / "source", config_of(hidden_size=256, intermediate_size=192)), root / "model")
    return root / "model"


@pytest.fixture
def pool(folder):
    """Of 4 layers of 8 experts."""

    def pool(slots):
        return load(folder, replace(WHOLE, expert_slots=slots)).network.pool

    return pool


def logits(model):
    cache = model.make_cache()
    return [np.array(model(mx.array([ids]), cache).astype(mx.float32)) for ids in IDS]


def fetch(pool, layer, experts, likely=()):
    """The slots of experts, after all of them have been read."""
    slot_of = np.max([table for table, _ in pool.fetch(layer, np.array([experts]), np.array(likely, int))], axis=0)
    return slot_of[experts]


class Drains:
    """Counts how often Python waits for arrays that are not computed yet."""

    def __init__(self, monkeypatch, model):
        self.count, self.tables, self._known, self._kept = 0, 0, set(), []
        evaluate, numpy_array, fetch = mx.eval, np.array, model.network.pool.fetch

        def counted(*arrays):
            self.count += 1
            self._know(arrays)
            evaluate(*arrays)

        def converted(data, *args, **kwargs):
            self.count += isinstance(data, mx.array) and id(data) not in self._known
            return numpy_array(data, *args, **kwargs)

        def fetched(*args):
            for table in fetch(*args):
                self.tables += 1
                yield table

        monkeypatch.setattr(mx, "eval", counted)
        monkeypatch.setattr(np, "array", converted)
        monkeypatch.setattr(model.network.pool, "fetch", fetched)
        for layer in model.network.layers:
            layer.moe.parts = self._knowing(layer.moe.parts)

    def _know(self, arrays):
        for array in arrays:
            if isinstance(array, mx.array):
                self._known.add(id(array))
                self._kept.append(array)
            elif isinstance(array, Iterable):
                self._know(array)

    def _knowing(self, parts):
        """Parts of a MoE block; the numbers of slots come from Python, so that nothing is waited for."""

        class Parts:
            route, combine = parts.route, parts.combine

            def expert_outputs(_, normed, slots, outputs):
                self._know([slots])
                return parts.expert_outputs(normed, slots, outputs)

        return Parts()


def test_a_layer_waits_once_where_all_its_experts_are_here(folder, computing, monkeypatch):
    model = load(folder, replace(WHOLE, expert_slots=32))
    for layer in range(4):
        fetch(model.network.pool, layer, range(8))
    cache = model.make_cache()
    mx.eval(model(mx.array([[1]]), cache))  # which makes room for keys and values
    drains = Drains(monkeypatch, model)
    for ids in IDS:
        before = drains.count
        result = model(mx.array([ids]), cache)
        assert drains.count - before == 4
        mx.eval(result)


def test_a_layer_waits_once_more_while_others_are_read(folder, computing, monkeypatch):
    model = load(folder, replace(WHOLE, expert_slots=8))
    cache = model.make_cache()
    mx.eval(model(mx.array([[1]]), cache))
    drains = Drains(monkeypatch, model)
    for ids in IDS:
        before, tables = drains.count, drains.tables
        result = model(mx.array([ids]), cache)
        # A layer's last table is the only one that nothing is read beside.
        assert drains.count - before == drains.tables - tables
        mx.eval(result)
    assert drains.tables > 4 * len(IDS)


def test_what_is_not_computed_yet_keeps_its_slots(folder, computing):
    """Logits that nobody has looked at refer to the slots of the last layer; other conversations want these."""
    model = load(folder, replace(WHOLE, expert_slots=4))
    right = np.array(model(mx.array([[3]])).astype(mx.float32))
    for _ in range(4):
        waiting = model(mx.array([[3]]))
        mx.eval([model(mx.array([[id_]])) for id_ in range(40, 46)])
        assert (np.array(waiting.astype(mx.float32)) == right).all()


def test_wrong_guesses_change_no_bit(folder, computing):
    right = logits(load(folder, WHOLE))
    model = load(folder, replace(WHOLE, expert_slots=9))
    moes = [layer.moe for layer in model.network.layers]
    for moe, other in zip(moes[:3], [moes[3], moes[0], moes[2]], strict=True):
        moe.next_parts = other.parts
    assert all((a == b).all() for a, b in zip(logits(model), right, strict=True))
    assert model.expert_stats.ahead_wrong > 0


def test_guesses_are_counted(pool):
    pool = pool(16)
    fetch(pool, 0, [0, 1], likely=[2, 3, 4, 5])
    assert len(pool._ahead) == pool.READ_AHEAD == 2
    fetch(pool, 1, [2, 6])
    assert (pool.stats.needed, pool.stats.missed) == (4, 4)
    assert (pool.stats.ahead_right, pool.stats.ahead_wrong) == (1, 1)
    fetch(pool, 2, [0], likely=[1])
    fetch(pool, 0, [0])  # another token
    assert (pool.stats.ahead_right, pool.stats.ahead_wrong) == (1, 2)


def test_what_is_needed_comes_before_guesses(pool):
    small = pool(2)
    for layer in range(3):  # a guess finds no slot, or one that is wanted back
        fetch(small, layer, [0, 1], likely=[2, 3])
    assert small.stats.missed == 6
    # Likely experts that are here stay: others leave, whatever their value.
    pool = pool(4)
    for _ in range(5):
        fetch(pool, 0, [0, 1])
    here = fetch(pool, 1, [2, 3])
    assert not set(fetch(pool, 0, [4, 5], likely=[2, 3])) & set(here)
    missed = pool.stats.missed
    assert (fetch(pool, 1, [2, 3]) == here).all()
    assert pool.stats.missed == missed
    # But not where this layer needs their slots.
    assert set(fetch(pool, 0, [0, 1, 2, 6], likely=[2, 3])) & set(here)


def test_a_slot_that_is_read_into_belongs_to_nobody_else(pool):
    pool = pool(6)
    for number in range(60):
        layer = number % 3
        slots = fetch(pool, layer, [number % 8, (number + 3) % 8], likely=[(number + 1) % 8, (number + 5) % 8])
        assert not {load.slot for load in pool._loading} & set(slots)
        held = pool._table._holds[pool._table._holds >= 0]
        assert len(set(held)) == len(held)
