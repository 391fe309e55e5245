"""What a measurement is asked for, and what is known of a model before it is measured."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import printable
from ..memory.plan import MemoryEstimate, MemoryPlan
from ..model.checkpoint import Checkpoint
from ..model.config import ModelConfig
from ..provenance import RANDOM_WEIGHTS
from ..untrusted import lexists, read_json
from .figures import Grid, ModelFacts, Point, Setup
from .machine import kernel_threads
from .routing import RoutingTrace

WARM_UP = 16  # tokens that are decoded before decoding is timed
MIN_CONTEXT = 1024  # of those that the plan is asked for


@dataclass(frozen=True)
class BenchmarkSpec:
    """What is to be measured: at each depth each prompt, and each number of tokens to decode."""

    prompts: tuple[int, ...]
    generate: tuple[int, ...]
    depths: tuple[int, ...]
    repeat: int
    start: bool = True
    profile: bool = False
    replay: RoutingTrace | None = None

    @property
    def first_prompt(self) -> int:
        """Tokens of the prompt whose first token is waited for."""
        return self.prompts[0] if self.prompts else 1

    @property
    def points(self) -> list[Point]:
        """The smallest depth first."""
        return Grid(self.prompts, self.generate, tuple(sorted(set(self.depths)))).points

    @property
    def context(self) -> int:
        """Positions that all of it takes."""
        decoded = [1 + max(count, WARM_UP) for count in self.generate]
        return max(self.depths) + max(
            (self.first_prompt + 1, *self.prompts, *decoded, *([WARM_UP] if self.profile else []))
        )


def _has_tokenizer(plan: MemoryPlan) -> bool:
    return lexists(Path(plan.model, "tokenizer.json"))


def _reads_text(plan: MemoryPlan) -> bool:
    return plan.settings.expert_slots is not None and _has_tokenizer(plan)


def setup_of(plan: MemoryPlan, wanted: BenchmarkSpec, energy: str | None = None) -> Setup:
    """`energy`: what a meter covers."""
    settings = plan.settings
    prompts = "text" if _reads_text(plan) else "random ids"
    return Setup(
        repeat=wanted.repeat,
        threads=kernel_threads(),
        context=settings.context,
        kv_bits=settings.kv_bits,
        prefill_chunk=settings.prefill_chunk,
        expert_slots=settings.expert_slots,
        cpu_expert_layers=settings.cpu_expert_layers,
        energy=energy,
        prompts=f"the routing of {wanted.replay.model}" if wanted.replay else prompts,
    )


def facts_of(folder: Path) -> ModelFacts:
    config, tensors = ModelConfig.load(folder), Checkpoint.open(folder).tensors
    weights = 0
    for name, tensor in tensors.items():
        module = name.rpartition(".")[0]
        if name == f"{module}.scales":
            weights += math.prod(tensor.shape) * config.stored_form(module, tensors).group_size
        elif f"{module}.scales" not in tensors or name == f"{module}.bias":
            weights += math.prod(tensor.shape)
    size = sum(tensor.nbytes for tensor in tensors.values())
    recipe, source = _provenance(folder)
    return ModelFacts(
        name=printable(folder.resolve().name),
        recipe=recipe,
        random_weights=source == RANDOM_WEIGHTS,
        layers=config.num_layers,
        experts=config.num_experts,
        experts_per_token=config.experts_per_token,
        bytes=size,
        bits_per_weight=8 * size / weights,
    )


def _provenance(folder: Path) -> tuple[str | None, str | None]:
    """The recipe of a folder, and what it was made from, where it says so."""
    made = read_json(path) if lexists(path := folder / "provenance.json") else None
    made = made if isinstance(made, dict) else {}
    source = made.get("source")
    texts = made.get("recipe"), source.get("id") if isinstance(source, dict) else None
    return tuple(text if isinstance(text, str) else None for text in texts)


def _planned_by_context(plan: MemoryPlan) -> list[tuple[int, int]]:
    """What the plan would be for shorter and longer contexts, everything else the same."""
    sizes = MemoryEstimate(Path(plan.model))
    contexts, length = [], MIN_CONTEXT
    while length < sizes.config.max_context:
        contexts.append(length)
        length *= 2
    return [
        (context, sum(row.bytes for row in sizes.rows(replace(plan.settings, context=context), plan.device)))
        for context in (*contexts, sizes.config.max_context)
    ]
