"""Folders in the converted form with published shapes, whose files are holes: headers are real, weights are zeros."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from checkpoints import config_of
from gptoss_mlx.model.safetensors import ITEM_SIZE

PUBLISHED = {
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "head_dim": 64,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 201088,
}
SIZES = {"20b": (24, 32), "120b": (36, 128)}  # layers, experts


def converted_shape(folder: Path, layers: int, experts: int, **changes: int) -> Path:
    """Recipe mxfp4-q4; one file for each layer, and one for the rest."""
    folder.mkdir(parents=True)
    config = config_of(num_hidden_layers=layers, num_local_experts=experts, **PUBLISHED | changes)
    config["quantization"] = {"group_size": 64, "bits": 4, "mode": "affine"}
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]

    def affine(name: str, rows: int, columns: int) -> dict[str, tuple[str, list[int]]]:
        groups = [rows, columns // 64]
        parts = {"weight": ("U32", [rows, columns // 8]), "scales": ("BF16", groups), "biases": ("BF16", groups)}
        return {f"{name}.{part}": form for part, form in parts.items()}

    weight_map = {}
    for layer in range(layers):
        path = f"model.layers.{layer}"
        tensors = {
            f"{path}.input_layernorm.weight": ("BF16", [hidden]),
            f"{path}.post_attention_layernorm.weight": ("BF16", [hidden]),
            f"{path}.self_attn.sinks": ("BF16", [config["num_attention_heads"]]),
            f"{path}.mlp.router.weight": ("BF16", [experts, hidden]),
            f"{path}.mlp.router.bias": ("BF16", [experts]),
        }
        for name, rows, columns in (
            ("q", queries, hidden),
            ("k", keys, hidden),
            ("v", keys, hidden),
            ("o", hidden, queries),
        ):
            tensors |= affine(f"{path}.self_attn.{name}_proj", rows, columns)
            tensors[f"{path}.self_attn.{name}_proj.bias"] = ("BF16", [rows])
        for name, rows, columns in (("gate", inner, hidden), ("up", inner, hidden), ("down", hidden, inner)):
            module = f"{path}.mlp.experts.{name}_proj"
            tensors[f"{module}.weight"] = ("U32", [experts, rows, columns // 8])
            tensors[f"{module}.scales"] = ("U8", [experts, rows, columns // 32])
            tensors[f"{module}.bias"] = ("BF16", [experts, rows])
            config["quantization"][module] = {"group_size": 32, "bits": 4, "mode": "mxfp4"}
        weight_map |= _hole(folder / f"model-{layer:05d}.safetensors", tensors)
    rest = affine("lm_head", config["vocab_size"], hidden) | affine("model.embed_tokens", config["vocab_size"], hidden)
    rest["model.norm.weight"] = ("BF16", [hidden])
    weight_map |= _hole(folder / "model-rest.safetensors", rest)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _hole(path: Path, tensors: dict[str, tuple[str, list[int]]]) -> dict[str, str]:
    header, end = {}, 0
    for name, (dtype, shape) in sorted(tensors.items(), key=lambda each: ITEM_SIZE[each[1][0]]):
        start, size = end, ITEM_SIZE[dtype]
        for length in shape:
            size *= length
        end = start + size
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text) + end) % 16384)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return dict.fromkeys(tensors, path.name)
