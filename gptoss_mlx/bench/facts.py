"""What a measurement is asked for, and what is known of a model and its plan before it is measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from .. import device
from ..errors import printable
from ..memory.estimate import MemoryEstimate
from ..memory.plan import MemoryPlan
from ..model.config import ModelConfig
from ..model.safetensors import TensorInfo
from ..provenance import RANDOM_WEIGHTS, recipe_and_source
from ..untrusted import lexists
from .results import Grid, ModelFacts, Setup
from .routing import RoutingTrace

WARM_UP = 16  # tokens that are decoded before decoding is timed
MIN_CONTEXT = 1024  # the shortest context that the plan is asked for


@dataclass(frozen=True, kw_only=True)
class BenchmarkSpec(Grid):
    """What is to be measured."""

    repeat: int
    start: bool = True
    profile: bool = False
    replay: RoutingTrace | None = None

    @property
    def first_prompt(self) -> int:
        """Tokens of the prompt whose first token is waited for."""
        return self.prompt[0] if self.prompt else 1

    @property
    def context(self) -> int:
        """Positions that all of it takes."""
        decoded = [1 + max(count, WARM_UP) for count in self.generate]
        after = (self.first_prompt + 1, *self.prompt, *decoded, WARM_UP if self.profile else 0)
        return max(self.depth) + max(after)


def has_tokenizer(plan: MemoryPlan) -> bool:
    return lexists(Path(plan.model, "tokenizer.json"))


def reads_text(plan: MemoryPlan) -> bool:
    """Whether prompts are text: what they mean decides which experts are paged."""
    return plan.settings.expert_slots is not None and has_tokenizer(plan)


def setup_of(plan: MemoryPlan, spec: BenchmarkSpec, energy: str | None = None) -> Setup:
    """`energy`: what a meter covers."""
    prompts = "text" if reads_text(plan) else "random ids"
    return Setup(
        **vars(plan.settings),
        repeat=spec.repeat,
        threads=device.runtime().threads,
        energy=energy,
        prompts=f"the routing of {spec.replay.model}" if spec.replay else prompts,
    )


def facts_of(folder: Path, estimate: MemoryEstimate) -> ModelFacts:
    """`estimate` has read the headers of the folder. Raises GptOssError."""
    config, tensors = estimate.config, estimate.tensors
    weights = 0
    for name, tensor in tensors.items():
        module, _, part = name.rpartition(".")
        if part == "scales":
            weights += quantized_weights(module, tensors, config)
        elif f"{module}.scales" not in tensors or part == "bias":
            weights += math.prod(tensor.shape)
    size = sum(tensor.nbytes for tensor in tensors.values())
    recipe, source = recipe_and_source(folder)
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


def quantized_weights(module: str, tensors: Mapping[str, TensorInfo], config: ModelConfig) -> int:
    """The number of weights of a module that has scales."""
    form = config.stored_form(module, tensors)
    return math.prod(tensors[f"{module}.scales"].shape) * form.group_size if form else 0


def planned_by_context(plan: MemoryPlan, estimate: MemoryEstimate) -> list[tuple[int, int]]:
    """The bytes that the plan would have for shorter and longer contexts, everything else the same."""
    longest = estimate.config.max_context
    doubled = [MIN_CONTEXT << n for n in range(longest.bit_length()) if MIN_CONTEXT << n < longest]
    return [
        (context, sum(row.bytes for row in estimate.rows(replace(plan.settings, context=context), plan.device)))
        for context in (*doubled, longest)
    ]
