"""A checkpoint on disk -> one stream of canonical weights.

Canonical: MLX-LM's names; the experts' gate, up and down apart; a weight is either BF16 or MXFP4. Which layout it came
from ends here. One layout is known: the published one of the hub (GptOssForCausalLM in safetensors).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gptoss_mlx.checkpoint import Checkpoint, CheckpointError
from gptoss_mlx.config import ModelConfig

from .mxfp4 import BLOCK


@dataclass(frozen=True)
class Plain:
    """A tensor in BF16: its bits, uint16, as a view of the file."""

    name: str
    values: np.ndarray

    @property
    def module(self) -> str:
        return self.name.removesuffix(".weight")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def is_matrix(self) -> bool:
        return len(self.shape) == 2 and self.name.endswith(".weight")


@dataclass(frozen=True)
class Blocks:
    """A weight of stacked experts in MXFP4, as views: blocks uint8 [E, rows, n, 16], scales uint8 [E, rows, n]."""

    module: str
    blocks: np.ndarray
    scales: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.scales.shape[:2], self.scales.shape[2] * BLOCK)


class HubSource:
    """A folder in the published layout, whose headers have been checked against its config. Raises GptOssError."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.config = ModelConfig.load(folder)
        self.raw_config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.checkpoint = Checkpoint.open(folder)
        _check(self.checkpoint, published_tensors(self.config))

    @property
    def shards(self) -> list[Path]:
        """The source files, in order of name."""
        return sorted(set(self.checkpoint.file_of.values()))

    def weights(self) -> Iterator[Plain | Blocks]:
        """Every weight of the model, layer by layer: views of the files, of which nothing has been read yet."""
        view = self.checkpoint.view
        for name in published_tensors(self.config):
            module, _, kind = name.rpartition("_")
            if ".mlp.experts." not in name:
                yield Plain(name, view(name))
            elif kind == "blocks":
                for part, rows in _parts(module):
                    yield Blocks(part, view(name)[:, rows], view(f"{module}_scales")[:, rows])
            elif kind == "bias":
                for part, rows in _parts(module):
                    yield Plain(f"{part}.bias", view(name)[:, rows])


def _parts(module: str) -> list[tuple[str, slice]]:
    """The canonical modules inside a published one, and which of its rows are theirs: gate and up alternate."""
    if module.endswith("gate_up_proj"):
        path = module.removesuffix("gate_up_proj")
        return [(f"{path}gate_proj", slice(0, None, 2)), (f"{path}up_proj", slice(1, None, 2))]
    return [(module, slice(None))]


def published_tensors(config: ModelConfig) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name -> (dtype, shape) of every tensor in a published checkpoint of this configuration."""
    hidden, intermediate, experts = config.hidden_size, config.intermediate_size, config.num_experts
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    for index in range(config.num_layers):
        path = f"model.layers.{index}"
        tensors[f"{path}.input_layernorm.weight"] = ("BF16", (hidden,))
        tensors[f"{path}.self_attn.sinks"] = ("BF16", (config.num_heads,))
        for name, rows, columns in (
            ("q", queries, hidden),
            ("k", keys, hidden),
            ("v", keys, hidden),
            ("o", hidden, queries),
        ):
            tensors[f"{path}.self_attn.{name}_proj.weight"] = ("BF16", (rows, columns))
            tensors[f"{path}.self_attn.{name}_proj.bias"] = ("BF16", (rows,))
        tensors[f"{path}.post_attention_layernorm.weight"] = ("BF16", (hidden,))
        tensors[f"{path}.mlp.router.weight"] = ("BF16", (experts, hidden))
        tensors[f"{path}.mlp.router.bias"] = ("BF16", (experts,))
        for name, rows, columns in (("gate_up", 2 * intermediate, hidden), ("down", hidden, intermediate)):
            module = f"{path}.mlp.experts.{name}_proj"
            tensors[f"{module}_blocks"] = ("U8", (experts, rows, columns // BLOCK, BLOCK // 2))
            tensors[f"{module}_scales"] = ("U8", (experts, rows, columns // BLOCK))
            tensors[f"{module}_bias"] = ("BF16", (experts, rows))
    tensors["model.norm.weight"] = ("BF16", (hidden,))
    tensors["lm_head.weight"] = ("BF16", (config.vocab_size, hidden))
    tensors["model.embed_tokens.weight"] = ("BF16", (config.vocab_size, hidden))
    return tensors


def _check(checkpoint: Checkpoint, wanted: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    found = checkpoint.tensors
    if any(name.endswith(".gate_proj.weight") for name in found):
        raise CheckpointError(f"{checkpoint.folder} has been converted already: convert what it was made from")
    if missing := [name for name in wanted if name not in found]:
        raise CheckpointError(f"{checkpoint.folder} is not a published gpt-oss checkpoint: it lacks {_some(missing)}")
    if unknown := [name for name in found if name not in wanted]:
        raise CheckpointError(f"{checkpoint.folder} has tensors that gpt-oss does not: {_some(unknown)}")
    for name, (dtype, shape) in wanted.items():
        if (found[name].dtype, found[name].shape) != (dtype, shape):
            raise CheckpointError(
                f"{checkpoint.file_of[name]}: {name!r} is {found[name].dtype} {list(found[name].shape)},"
                f" and config.json asks for {dtype} {list(shape)}"
            )


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
