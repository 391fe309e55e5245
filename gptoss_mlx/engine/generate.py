"""A model folder in, token ids in, token ids out: load, prefill and decode.

Knows no text: a model has its tokenizer at hand, and what is rendered, and what a stop id means, its callers know.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx

from ..device import backend
from ..errors import GptOssError
from ..memory.devices import Device
from ..memory.estimate import EngineConfig
from ..memory.plan import MemoryPlan, make_plan
from ..memory.system import parse_size
from ..model.config import ModelConfig
from ..model.expert_pool import PoolStats
from ..model.installed import Hold
from ..model.kv_cache import KVCache
from ..model.model_store import note_use, resolve
from ..model.network import Transformer
from ..model.recognition import model_folder, open_converted
from ..model.weights import Weights
from ..untrusted import lexists, read_json
from .mlx_errors import mlx_errors
from .sampling import Sampler, Sampling
from .together import NextToken, Together
from .tokenizer import Tokenizer

GENERATION_CONFIG = "generation_config.json"
# <|endoftext|>, <|return|> and <|call|> of o200k_harmony. Never <|end|>: it only ends a message, and more may follow.
PUBLISHED_STOP_IDS = frozenset({199999, 200002, 200012})


class ContextFull(GptOssError):
    """The prompt does not fit into what is left of the model's context."""


class NotFinite(GptOssError):
    """The model computes what is no number, NaN or infinity: nothing follows from that."""

    def __init__(self, folder: Path):
        super().__init__(
            f"the model computes NaN or infinity: its files are damaged. `gptoss-mlx verify {folder}` names the file;"
            " convert the checkpoint again"
        )


Steps = Generator[tuple[int, int], None, mx.array]
"""A prefill: yields the tokens that are done and their total, before the first chunk and after each, so that others can
have their turn between two; returns the last position's logits [1, vocabulary]."""


class Constraint(Protocol):
    """Which ids may come next, id by id."""

    def allowed(self) -> mx.array | None:
        """Booleans [vocabulary]; None where everything may."""

    def accept(self, id_: int) -> None:
        """Go on after this id."""


class Model:
    """A loaded model. Calling it gives logits; `generate` gives tokens; a `KVCache` carries a conversation.

    `path` is its folder, `config` its architecture, `settings` what it was loaded with, `plan` where that comes from:
    None where somebody gave the settings. `stop_ids` end an answer.
    """

    def __init__(
        self,
        path: Path,
        config: ModelConfig,
        network: Transformer,
        stop_ids: frozenset[int],
        settings: EngineConfig,
        plan: MemoryPlan | None = None,
        hold: Hold | None = None,
    ):
        """`hold` keeps the folder in its place as long as there is the model."""
        self.path, self.config, self.network, self.stop_ids = path, config, network, stop_ids
        self.settings, self.plan, self._hold = settings, plan, hold
        self.together: Together | None = None
        """Where several conversations are decoded by turns: reads a token of each at a time."""

    def __repr__(self) -> str:
        slots = self.settings.expert_slots
        experts = "all experts in memory" if slots is None else f"{slots} experts in memory"
        return (
            f"<Model {self.path.name}: {self.config.num_layers} layers of {self.config.num_experts} experts, {experts},"
            f" context {self.context:,}, KV cache in {self.settings.kv_bits} bits>"
        )

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Its folder's tokenizer.json. Raises GptOssError where there is none that is usable."""
        return Tokenizer.load(self.path)

    @cached_property
    def is_greedy(self) -> bool:
        """Whether its folder says that the likeliest token is meant where nobody has chosen a temperature."""
        data = _generation_config(self.path)
        return isinstance(data, dict) and data.get("do_sample") is False

    @property
    def context(self) -> int:
        """Positions that a conversation may have."""
        return self.settings.context

    @property
    def expert_stats(self) -> PoolStats | None:
        """What the paging of experts has done; None where all are in memory."""
        return self.network.pool.stats if self.network.pool else None

    def make_cache(self) -> KVCache:
        """The empty KV state of one conversation."""
        return self.network.make_cache(self.settings.context, self.settings.kv_bits)

    def __call__(self, ids: mx.array, cache: KVCache | None = None) -> mx.array:
        """Token ids [1, L] -> logits [1, L, vocabulary]. With a cache, the ids follow those that it holds."""
        return self.network.logits(self.network.hidden(ids, cache or self.make_cache()))

    def prefill(
        self,
        ids: Sequence[int],
        cache: KVCache,
        *,
        chunk: int | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> mx.array:
        """Feed `ids` into the cache, `chunk` at a time, and return the last position's logits [1, vocabulary].

        `on_progress(done, total)` is called before the first chunk and after each. Raises ContextFull, GptOssError for
        an unknown id, and OutOfMemory, after which the cache is of no use.
        """
        return finish(self.prefill_steps(ids, cache, chunk), on_progress)

    def prefill_steps(self, ids: Sequence[int], cache: KVCache, chunk: int | None = None) -> Steps:
        """As `prefill`, chunk by chunk."""
        self._check(ids, cache)
        chunk = chunk or self.settings.prefill_chunk
        yield 0, len(ids)
        for start in range(0, len(ids), chunk):
            with mlx_errors():
                part = mx.array([ids[start : start + chunk]])
                hidden = self.network.hidden(part, cache)
                mx.eval(hidden, cache.arrays())
            yield start + part.shape[1], len(ids)
        with mlx_errors():
            return self.network.logits(hidden[:, -1:])[:, 0]

    def generate(
        self,
        ids: Sequence[int],
        *,
        sampling: Sampling | None = None,
        max_tokens: int | None = None,
        stop: Collection[int] | None = None,
        cache: KVCache | None = None,
        on_prefill: Callable[[int, int], None] | None = None,
    ) -> Iterator[int]:
        """Yield sampled ids until a stop id (which is yielded too), `max_tokens`, or the end of the context.

        `stop` defaults to the model's own `stop_ids`. With a cache, `ids` follow what it holds; afterwards it holds
        `ids` and all that was yielded, perhaps without the last: see `cache.offset`.
        Raises ContextFull, GptOssError for an unknown id, and OutOfMemory.
        """
        cache = cache or self.make_cache()
        sampler = Sampler(sampling or Sampling(), context=ids)
        logits = self.prefill(ids, cache, on_progress=on_prefill)
        yield from self.decode(logits, cache, sampler=sampler, max_tokens=max_tokens, stop=stop)

    def decode(
        self,
        logits: mx.array,
        cache: KVCache,
        *,
        sampler: Sampler,
        max_tokens: int | None = None,
        stop: Collection[int] | None = None,
        constraint: Constraint | None = None,
    ) -> Iterator[int]:
        """Yield sampled ids, the first from `logits` [1, vocabulary] of the cache's last position, as `generate` does.

        A `constraint` says before each id which ones may be sampled, so that nothing is computed ahead of it. Raises
        NotFinite where the logits of an id are not all numbers, and OutOfMemory.
        """
        stop = self.stop_ids if stop is None else stop
        room = cache.context - cache.offset + 1
        limit = min(room, max_tokens or room)
        ahead = backend().looks_ahead and constraint is None

        def sampled(logits: mx.array) -> tuple[mx.array, mx.array]:
            """A token [1], and the sum of the logits."""
            total = mx.sum(logits)
            if not constraint:
                return sampler(logits), total
            mx.async_eval(logits)
            return sampler(logits, constraint.allowed()), total

        waiting: NextToken | None = None
        try:
            with mlx_errors():
                upcoming = sampled(logits)
                for count in range(1, limit + 1):
                    token, total = upcoming
                    mx.async_eval(token, total)
                    if ahead and count < limit:
                        upcoming = sampled(self._next_logits(token, cache))
                        mx.async_eval(*upcoming)
                    self.require_finite(total)
                    id_ = int(token)
                    if id_ in stop or count == limit:
                        yield id_
                        return
                    if self.together:
                        waiting = self.together.add(id_, cache)
                    yield id_
                    if constraint:
                        constraint.accept(id_)
                    if self.together and waiting:
                        upcoming = sampled(self.together.logits(waiting))
                    elif not ahead:
                        upcoming = sampled(self._next_logits(token, cache))
        finally:
            if self.together and waiting:
                self.together.remove(waiting)

    def require_finite(self, total: mx.array) -> None:
        """`total` is the sum of logits, which is a number only if they all are. Raises NotFinite."""
        if not math.isfinite(float(total)):
            raise NotFinite(self.path)

    def _next_logits(self, token: mx.array, cache: KVCache) -> mx.array:
        """Token [1] -> the logits after it [1, vocabulary], not yet evaluated."""
        return self.network.logits(self.network.hidden(token[None], cache))[:, 0]

    def _check(self, ids: Sequence[int], cache: KVCache) -> None:
        if not ids:
            raise GptOssError("there are no tokens to start from")
        if wrong := next((id_ for id_ in ids if not 0 <= id_ < self.config.vocab_size), None):
            raise GptOssError(f"token id {wrong} is outside the vocabulary of {self.config.vocab_size}")
        if cache.offset + len(ids) > cache.context:
            raise self.full(f"{len(ids):,} tokens after {cache.offset:,}")

    def full(self, tokens: str) -> ContextFull:
        """What to raise where so many tokens, in words, are too many."""
        longer = "the model's" if self.context == self.config.max_context else "this run's"
        return ContextFull(f"{tokens} exceed {longer} context of {self.context:,}")


def finish(steps: Steps, on_progress: Callable[[int, int], None] | None = None) -> mx.array:
    """Run a prefill to its end, with a call for each of its steps; returns its logits."""
    with closing(steps):
        while True:
            try:
                step = next(steps)
            except StopIteration as end:
                return end.value
            if on_progress:
                on_progress(*step)


@mlx_errors()
def load(
    model: str | Path,
    settings: EngineConfig | None = None,
    *,
    memory: int | str | None = None,
    context: int | None = None,
    kv_bits: int | None = None,
) -> Model:
    """Open a converted model: a folder, "~" included, or the name of one that was converted, such as "gpt-oss-20b".

    Headers and the small weights are checked; the others are mapped, or read when they are first used.

    It is loaded as a memory plan for this machine says: within `memory`, bytes or text such as "16GB", or else within
    what is available; for `context` tokens, or else for as many as fit; with a KV cache of `kv_bits` bits a value, 8 or
    16, or else 16 where that fits. `settings`, of another plan, are taken as they are; the other options mean nothing
    then.

    Raises BudgetTooSmall where it does not fit, ModelMissing for one that has to be converted first, OutOfMemory, and
    GptOssError (ConfigError, CheckpointError) naming what is wrong.
    """
    path = model_folder(Path(os.path.expanduser(model))) if isinstance(model, Path) else resolve(model)
    plan = None
    if settings is None:
        size = parse_size(memory) if isinstance(memory, str) else memory
        plan = make_plan(path, Device.here(), memory=size, context=context, kv_bits=kv_bits)
        settings = plan.settings
    hold = Hold(path)
    note_use(path)
    config, checkpoint = open_converted(path)
    if settings.workspace is not None:
        mx.set_cache_limit(settings.workspace)
    if settings.allocations is not None:
        mx.set_memory_limit(settings.allocations)
    weights = Weights(checkpoint, config, backend().dtype)
    network = Transformer(
        weights,
        expert_slots=settings.expert_slots,
        expert_layers_on_cpu=settings.cpu_expert_layers,
        embeddings_on_gpu=settings.embeddings_on_gpu,
    )
    weights.check_finite()
    return Model(path, config, network, _stop_ids(path), settings, plan, hold)


def _generation_config(folder: Path) -> Any:
    path = folder / GENERATION_CONFIG
    return read_json(path) if lexists(path) else {}


def _stop_ids(folder: Path) -> frozenset[int]:
    """`eos_token_id` of generation_config.json, where most checkpoints of the family list their stop ids."""
    data = _generation_config(folder)
    ids = data.get("eos_token_id") if isinstance(data, dict) else []
    if ids is None:
        return PUBLISHED_STOP_IDS
    ids = ids if isinstance(ids, list) else [ids]
    if not ids or not all(type(id_) is int for id_ in ids):
        raise GptOssError(f"{folder / GENERATION_CONFIG} has no usable eos_token_id: a token id, or a list of them")
    return frozenset(ids)
