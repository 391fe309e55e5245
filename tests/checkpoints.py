"""Small random gpt-oss checkpoints in the published (hub) layout, for tests: same seed, same bytes.

Weights are large enough that positions, sinks, routing and both clamps of the SwiGLU decide the logits: with small
ones a wrong rotary embedding passes. RandomState, because its stream never changes between NumPy releases.
"""

from __future__ import annotations

import json
import struct
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

DEFAULTS = {
    "architectures": ["GptOssForCausalLM"],
    "model_type": "gpt_oss",
    "attention_bias": True,
    "num_hidden_layers": 4,
    "hidden_size": 64,
    "intermediate_size": 64,
    "head_dim": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 8,
    "num_experts_per_tok": 4,
    "vocab_size": 320,
    "sliding_window": 128,
    "swiglu_limit": 7.0,
    "rms_norm_eps": 1e-05,
    "rope_theta": 150000,
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 4096,
    },
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
    "eos_token_id": 257,
    "torch_dtype": "bfloat16",
}

# What decides the shapes of tensors.
SIZES = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "head_dim",
    "num_attention_heads",
    "num_key_value_heads",
    "num_local_experts",
    "vocab_size",
)


def config_of(**changes: Any) -> dict[str, Any]:
    """A published-style config.json; `changes` are its fields."""
    config = DEFAULTS | changes
    kinds = ["sliding_attention", "full_attention"]
    config.setdefault("layer_types", [kinds[i % 2] for i in range(config["num_hidden_layers"])])
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.embed_tokens"]}
    return config


def tensors_of(config: dict[str, Any], seed: int = 0) -> dict[str, tuple[np.ndarray, str]]:
    """Name -> (array, dtype): BF16 as its bits in uint16, MXFP4 blocks and scales as uint8."""
    drawn = _drawn(*(config[name] for name in SIZES), seed)
    return {name: (array.copy(), dtype) for name, (array, dtype) in drawn.items()}


@lru_cache(maxsize=4)
def _drawn(*sizes_and_seed: int) -> dict[str, tuple[np.ndarray, str]]:
    *sizes, seed = sizes_and_seed
    config = dict(zip(SIZES, sizes, strict=True))
    random = np.random.RandomState(seed)
    hidden, intermediate, experts = config["hidden_size"], config["intermediate_size"], config["num_local_experts"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]

    def bf16(*shape: int, std: float, mean: float = 0.0) -> tuple[np.ndarray, str]:
        bits = (random.standard_normal(shape) * std + mean).astype(np.float32).view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16), "BF16"

    def mxfp4(rows: int, columns: int) -> dict[str, tuple[np.ndarray, str]]:
        blocks = random.randint(0, 256, (experts, rows, columns // 32, 16)).astype(np.uint8)
        middle = 127 - round(np.log2(columns) / 2)
        scales = random.randint(middle - 1, middle + 2, (experts, rows, columns // 32)).astype(np.uint8)
        return {"_blocks": (blocks, "U8"), "_scales": (scales, "U8"), "_bias": bf16(experts, rows, std=0.5)}

    tensors = {"model.embed_tokens.weight": bf16(config["vocab_size"], hidden, std=1.0)}
    for index in range(config["num_hidden_layers"]):
        path = f"model.layers.{index}"
        tensors[f"{path}.input_layernorm.weight"] = bf16(hidden, std=0.1, mean=1.0)
        tensors[f"{path}.self_attn.sinks"] = bf16(config["num_attention_heads"], std=1.0)
        for name, rows, columns in (("q", queries, hidden), ("k", keys, hidden), ("v", keys, hidden)):
            tensors[f"{path}.self_attn.{name}_proj.weight"] = bf16(rows, columns, std=1.2 / columns**0.5)
            tensors[f"{path}.self_attn.{name}_proj.bias"] = bf16(rows, std=0.2)
        tensors[f"{path}.self_attn.o_proj.weight"] = bf16(hidden, queries, std=1.0 / queries**0.5)
        tensors[f"{path}.self_attn.o_proj.bias"] = bf16(hidden, std=0.1)
        tensors[f"{path}.post_attention_layernorm.weight"] = bf16(hidden, std=0.1, mean=1.0)
        tensors[f"{path}.mlp.router.weight"] = bf16(experts, hidden, std=2.0 / hidden**0.5)
        tensors[f"{path}.mlp.router.bias"] = bf16(experts, std=0.3)
        for name, rows, columns in (("gate_up", 2 * intermediate, hidden), ("down", hidden, intermediate)):
            parts = mxfp4(rows, columns)
            tensors |= {f"{path}.mlp.experts.{name}_proj{part}": value for part, value in parts.items()}
    tensors["model.norm.weight"] = bf16(hidden, std=0.1, mean=1.0)
    tensors["lm_head.weight"] = bf16(config["vocab_size"], hidden, std=2.0 / hidden**0.5)
    return tensors


def write_safetensors(path: Path, tensors: dict[str, tuple[np.ndarray, str]]) -> None:
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, (array, dtype) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(array.tobytes() for array, _ in tensors.values()))


def write_checkpoint(folder: Path, config: dict[str, Any], seed: int = 0, shards: int = 2) -> Path:
    """Write config.json, `shards` safetensors files with their index, and a tokenizer of bytes into `folder`, if the
    vocabulary has room for one."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = _drawn(*(config[name] for name in SIZES), seed)
    names = list(tensors)
    weight_map = {}
    for number in range(shards):
        file = f"model-{number:05d}-of-{shards - 1:05d}.safetensors"
        part = names[len(names) * number // shards : len(names) * (number + 1) // shards]
        write_safetensors(folder / file, {name: tensors[name] for name in part})
        weight_map |= dict.fromkeys(part, file)
    total = sum(array.nbytes for array, _ in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [256, 257, 263]}))
    if config["vocab_size"] >= 264:
        write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer without merges: ids 0-255 are bytes, 256-263 the Harmony special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    special = ["<|endoftext|>", "<|return|>", "<|constrain|>", "<|channel|>", "<|start|>", "<|end|>", "<|message|>"]
    special.append("<|call|>")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"eos_token": "<|return|>", "pad_token": "<|endoftext|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))


def add_apple_doubles(folder: Path) -> None:
    """What macOS puts beside every file, and within every folder, on a disk that has no attributes of its own."""
    for path in [*folder.rglob("*")]:
        (path.parent / f"._{path.name}").write_bytes(b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        ")
