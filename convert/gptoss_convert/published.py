"""The published models before they are here: their config.json, and the headers of the folder that a conversion makes.

Nothing is downloaded or written for that: which tensors there are follows from config.json, what becomes of them from a
recipe, and how they lie in files from the writer. So a memory plan is the same as that of the folder itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from gptoss_mlx.memory.estimate import ModelHeaders
from gptoss_mlx.model.checkpoint import Checkpoint, Shard
from gptoss_mlx.model.config import LAYER_TYPES, ModelConfig
from gptoss_mlx.model.safetensors import parse_header

from .canonical_weights import Rows
from .layouts import PUBLISHED
from .quantize import converted_config, writer_of
from .recipes import RECIPES, Recipe
from .sources import Weight

SHAPES = {"gpt-oss-20b": (24, 32), "gpt-oss-120b": (36, 128)}  # layers, and experts of each
# Hub repositories of these shapes.
REPOSITORY = re.compile(r"openai/(gpt-oss)(?:-safeguard)?(-20b|-120b)")

# config.json of the published checkpoints, without what differs between them.
CONFIG = {
    "architectures": ["GptOssForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "eos_token_id": 200002,
    "experts_per_token": 4,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2880,
    "initial_context_length": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 2880,
    "max_position_embeddings": 131072,
    "model_type": "gpt_oss",
    "num_attention_heads": 64,
    "num_experts_per_tok": 4,
    "num_key_value_heads": 8,
    "output_router_logits": False,
    "pad_token_id": 199999,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "rope_type": "yarn",
        "truncate": False,
    },
    "rope_theta": 150000,
    "router_aux_loss_coef": 0.9,
    "sliding_window": 128,
    "swiglu_limit": 7.0,
    "tie_word_embeddings": False,
    "use_cache": True,
    "vocab_size": 201088,
}
TOKENIZER_BYTES = 27_868_174  # of the published tokenizer.json
LARGEST_SHARD = 4_800_000_000  # bytes that a conversion from the hub has on the disk beside its result: about a shard


def config_of(layers: int, experts: int) -> dict[str, Any]:
    """config.json as it is published, for so many layers, and experts in each."""
    counts = {"num_hidden_layers": layers, "num_local_experts": experts}
    return CONFIG | counts | {"layer_types": [*LAYER_TYPES] * (layers // 2)}


def config_in(repository: str) -> dict[str, Any] | None:
    """config.json of a published model; None for another repository."""
    found = REPOSITORY.fullmatch(repository)
    return config_of(*SHAPES["".join(found.groups())]) if found else None


def weights_of(raw_config: Mapping[str, Any]) -> list[Weight]:
    """The canonical weights of a published checkpoint with this config.json, which nothing can read."""
    config = ModelConfig.from_dict(raw_config)
    forms = PUBLISHED.tensors(config)

    def unread(name: str) -> Rows:
        return Rows(forms[name][1], lambda start, stop: np.empty(0))

    return [item for name in forms for item in PUBLISHED.weights(name, unread, config)]


def headers_of(
    name: str, raw_config: Mapping[str, Any], weights: Sequence[Weight], recipe: Recipe, tokenizer_bytes: int
) -> ModelHeaders:
    """The headers of the folder that a conversion with this recipe makes of these weights. Raises ConvertError."""
    folder = Path(name)
    shards = {
        shard.path.name: Shard(shard.path, parse_header(shard.path, shard.header[8:], shard.size))
        for shard in writer_of(folder, weights, recipe).shards
    }
    config = ModelConfig.from_dict(converted_config(raw_config, weights, recipe))
    return ModelHeaders(name, config, Checkpoint.placed(folder, None, shards), tokenizer_bytes)


def headers_by_recipe(
    name: str, raw_config: Mapping[str, Any], weights: Iterable[Weight]
) -> Callable[[str], ModelHeaders]:
    """The headers of the folder that a conversion of these weights makes, by the name of the recipe; each is computed
    when it is first asked for."""
    weights = list(weights)

    @cache
    def headers(recipe: str) -> ModelHeaders:
        return headers_of(f"{name} with {recipe}", raw_config, weights, RECIPES[recipe], TOKENIZER_BYTES)

    return headers


@cache
def published_headers(repository: str) -> Callable[[str], ModelHeaders] | None:
    """The same for a published model; None for another repository."""
    if (raw_config := config_in(repository)) is None:
        return None
    return headers_by_recipe(repository, raw_config, weights_of(raw_config))
