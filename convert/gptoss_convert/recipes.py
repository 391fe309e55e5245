"""Which weights get which quantization. Data only: the names are those that the community gives its builds.

Router, norms, sinks and biases have no entry, because no recipe touches them: they stay BF16.
"""

from __future__ import annotations

from dataclasses import dataclass

from gptoss_mlx.config import Quantization

MXFP4 = Quantization(group_size=32, bits=4, mode="mxfp4")
Q4 = Quantization(group_size=64, bits=4)
Q8 = Quantization(group_size=64, bits=8)


@dataclass(frozen=True)
class Recipe:
    """How each family of weights is stored; None is BF16, untouched. MXFP4 experts keep their published bits."""

    experts: Quantization
    attention: Quantization | None
    embedding: Quantization | None
    head: Quantization | None
    summary: str

    def of(self, module: str) -> Quantization | None:
        """The quantization of a module's weight, by its path."""
        return next((getattr(self, family) for part, family in FAMILIES.items() if part in module), None)


FAMILIES = {
    ".mlp.experts.": "experts",
    ".self_attn.": "attention",
    "model.embed_tokens": "embedding",
    "lm_head": "head",
}

DEFAULT_RECIPE = "mxfp4-q4"

RECIPES = {
    "mxfp4-q4": Recipe(MXFP4, Q4, Q4, Q4, "experts as published, all else 4-bit"),
    "mxfp4-q8": Recipe(MXFP4, Q8, Q8, Q8, "experts as published, all else 8-bit"),
    "mxfp4-bf16": Recipe(MXFP4, None, None, None, "experts as published, all else untouched"),
    "q4": Recipe(Q4, Q4, Q4, Q4, "everything 4-bit affine, for runtimes without MXFP4"),
}
