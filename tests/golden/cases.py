"""The random configurations of the golden logits: what each one is there to catch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Case:
    config: dict[str, Any]
    length: int
    positions: list[int]
    """Positions of the prompt whose logits are kept."""
    seed: int = 0


CASES = {
    "published_shape": Case({}, 300, [0, 1, 126, 127, 128, 129, 255, 256, 257, 299], seed=1),
    "odd_counts": Case(
        {
            "num_hidden_layers": 3,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "head_dim": 32,
            "num_local_experts": 7,
            "num_experts_per_tok": 3,
            "hidden_size": 96,
            "intermediate_size": 160,
            "sliding_window": 50,
        },
        211,
        [0, 48, 49, 50, 51, 52, 100, 210],
        seed=2,
    ),
    "past_4096": Case(
        {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1},
        4200,
        [0, 127, 128, 4094, 4095, 4096, 4097, 4150, 4199],
        seed=3,
    ),
    "full_first_tiny_window": Case(
        {
            "layer_types": ["full_attention", "full_attention", "sliding_attention", "sliding_attention"],
            "sliding_window": 3,
            "num_attention_heads": 8,
            "num_key_value_heads": 1,
            "head_dim": 16,
        },
        140,
        [0, 1, 2, 3, 4, 64, 139],
        seed=4,
    ),
    "many_experts": Case(
        {"num_hidden_layers": 6, "num_local_experts": 128, "hidden_size": 128, "intermediate_size": 64},
        200,
        [0, 127, 128, 199],
        seed=5,
    ),
    "one_expert_no_grouping": Case(
        {
            "num_hidden_layers": 2,
            "num_local_experts": 1,
            "num_experts_per_tok": 1,
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "head_dim": 128,
            "swiglu_limit": 2.5,
        },
        150,
        [0, 128, 149],
        seed=6,
    ),
    "other_rope": Case(
        {
            "rope_theta": 10000,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 8.0,
                "beta_fast": 16.0,
                "beta_slow": 2.0,
                "truncate": True,
                "original_max_position_embeddings": 256,
            },
            "max_position_embeddings": 2048,
        },
        700,
        [0, 255, 256, 257, 699],
        seed=7,
    ),
}


def prompt_of(case: Case) -> list[int]:
    """Token ids that do not repeat in step with any window."""
    return np.random.RandomState(1000 + case.seed).randint(0, 256, case.length).tolist()
