"""Which experts to keep: misses of several policies on routing traces, and of the best that knows the future.

python tests/memory/policies.py [CONVERTED_FOLDER ...]

Traces: 400 tokens of a 20b shape (24 layers, 32 experts, 4 a token), drawn by chance, and what the models in the
folders given route while they read. A pool of 20 slots for 32 experts is about what 8 GB leave.
"""

from __future__ import annotations

import sys
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy as np

from gptoss_mlx.model.expert_pool import SlotTable

Trace = np.ndarray  # [tokens, layers, k]: the experts of each token in each layer


def drawn(tokens: int, layers: int, experts: int, k: int, mass: float, share: float, shift: int = 0) -> Trace:
    """`mass` of the choices go to `share` of the experts; every `shift` tokens these are drawn anew."""
    chance = np.random.default_rng(3)

    def odds() -> np.ndarray:
        few = int(experts * share)
        each = np.where(np.arange(experts) < few, mass / few, (1 - mass) / max(experts - few, 1))
        return np.stack([chance.permutation(each) for _ in range(layers)])

    trace, likely = [], odds()
    for token in range(tokens):
        if shift and token and token % shift == 0:
            likely = odds()
        scores = np.log(likely) + chance.gumbel(size=likely.shape)
        trace.append(np.argsort(-scores, axis=1)[:, :k])
    return np.stack(trace)


def recorded(folder: Path, tokens: int = 400) -> Trace:
    """What a model routes while it talks about sums, in the words of the demo model."""
    from gptoss_mlx import load
    from gptoss_mlx.bench.routing import recording
    from gptoss_mlx.engine.tokenizer import Tokenizer
    from gptoss_mlx.harmony.messages import Conversation, Message
    from gptoss_mlx.harmony.render import render_ids

    model = load(folder)
    said = []
    for a in range(100, 1000, 17):
        said += [Message("user", f"What is {a} + {a + 7}?"), Message("assistant", f"{2 * a + 7}", channel="final")]
    ids = render_ids(Conversation(tuple(said)), Tokenizer.load(folder))
    with recording(model) as recorder:
        model.prefill(ids[:tokens], model.make_cache())
    return recorder.trace().chosen.astype(int)


def misses_of_table(trace: Trace, experts: int, slots: int, half_life: float) -> int:
    layers = len(trace[0])
    table = SlotTable(layers, experts, slots)
    table.HALF_LIFE = half_life
    missed = 0
    for token in trace:
        for layer, chosen in enumerate(token):
            table.use(layer, np.bincount(chosen, minlength=experts), 1)
            found = table.find(layer, chosen)
            table.hold(found[found >= 0].tolist())
            missing = chosen[found < 0]
            missed += len(missing)
            for expert, slot in zip(missing, table.vacate(len(missing)), strict=True):
                table.fill(slot, layer, int(expert))
            table.release()
    return missed


def uses_in_order(trace: Trace) -> list[tuple[int, int]]:
    return [(layer, int(expert)) for token in trace for layer, chosen in enumerate(token) for expert in chosen]


def misses_of_lru(trace: Trace, slots: int) -> int:
    kept: OrderedDict[tuple[int, int], None] = OrderedDict()
    missed = 0
    for use in uses_in_order(trace):
        if use in kept:
            kept.move_to_end(use)
            continue
        missed += 1
        kept[use] = None
        if len(kept) > slots:
            kept.popitem(last=False)
    return missed


def misses_of_the_best(trace: Trace, slots: int) -> int:
    """Belady's: who is used last again leaves. No policy misses less."""
    uses = uses_in_order(trace)
    following: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i in range(len(uses) - 1, -1, -1):
        following[uses[i]].append(i)
    kept: dict[tuple[int, int], int] = {}
    missed = 0
    for use in uses:
        following[use].pop()
        again = following[use][-1] if following[use] else len(uses)
        if use not in kept:
            missed += 1
            if len(kept) >= slots:
                del kept[max(kept, key=kept.__getitem__)]
        kept[use] = again
    return missed


def main() -> None:
    shape = {"tokens": 400, "layers": 24, "experts": 32, "k": 4}
    traces = {
        "random": (drawn(**shape, mass=0.5, share=0.5), 32),
        "80 % on half": (drawn(**shape, mass=0.8, share=0.5), 32),
        "80 % on a quarter": (drawn(**shape, mass=0.8, share=0.25), 32),
        "80 % on half, shifting": (drawn(**shape, mass=0.8, share=0.5, shift=100), 32),
    }
    for name in sys.argv[1:]:
        trace = recorded(Path(name))
        traces[Path(name).name] = trace, 1 + int(trace.max())
    half_lives = (8, 32, 128, 512, 1e9)
    print(f"{'misses of all uses':26}{'LRU':>8}" + "".join(f"{f'half {h:g}':>11}" for h in half_lives) + f"{'best':>8}")
    for name, (trace, experts) in traces.items():
        uses = len(uses_in_order(trace))
        slots = len(trace[0]) * experts * 20 // 32
        missed = [misses_of_lru(trace, slots)]
        missed += [misses_of_table(trace, experts, slots, half_life) for half_life in half_lives]
        missed += [misses_of_the_best(trace, slots)]
        print(f"{name:26}" + "".join(f"{count / uses:>{w}.1%}" for count, w in zip(missed, [8, *[11] * 5, 8])))  # noqa: B905


if __name__ == "__main__":
    main()
