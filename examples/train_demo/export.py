"""The network -> a checkpoint in the published (hub) layout, and back: MXFP4 experts, everything else BF16."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from torch import Tensor

from network import FP4, Network, mxfp4_parts

CODE = {0.0: 0, 0.5: 1, 1.0: 2, 1.5: 3, 2.0: 4, 3.0: 5, 4.0: 6, 6.0: 7}


def export(network: Network, config: dict, source: Path, folder: Path) -> None:
    """Write a whole model folder: weights, tokenizer (from `source`), settings, chat template, model card."""
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / "model.safetensors.partial"
    partial.write_bytes(save(hub_tensors(network), metadata={"format": "pt"}))
    partial.replace(folder / "model.safetensors")
    shutil.copyfile(source / "tokenizer.json", folder / "tokenizer.json")
    here = Path(__file__).parent
    shutil.copyfile(here / "chat_template.jinja", folder / "chat_template.jinja")
    shutil.copyfile(here / "model_card.md", folder / "README.md")
    ids = {
        token["content"]: token["id"] for token in json.loads((source / "tokenizer.json").read_text())["added_tokens"]
    }
    stop = [ids["<|return|>"], ids["<|endoftext|>"], ids["<|call|>"]]
    excluded = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    config = config | {
        "eos_token_id": stop[0],
        "pad_token_id": stop[1],
        "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": excluded},
    }
    generation = {
        "bos_token_id": ids["<|startoftext|>"],
        "do_sample": False,
        "eos_token_id": stop,
        "pad_token_id": stop[1],
    }
    tokenizer = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|return|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": config["max_position_embeddings"],
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    for name, data in (("config", config), ("generation_config", generation), ("tokenizer_config", tokenizer)):
        (folder / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n")


@torch.no_grad()
def hub_tensors(network: Network) -> dict[str, Tensor]:
    tensors = {
        "model.embed_tokens.weight": network.embed_tokens.bfloat16(),
        "model.norm.weight": network.norm.bfloat16(),
        "lm_head.weight": network.lm_head.bfloat16(),
    }
    for index, layer in enumerate(network.layers):
        path = f"model.layers.{index}"
        for name in ("q", "k", "v", "o"):
            tensors[f"{path}.self_attn.{name}_proj.weight"] = getattr(layer, f"{name}_proj").bfloat16()
            tensors[f"{path}.self_attn.{name}_proj.bias"] = getattr(layer, f"{name}_bias").bfloat16()
        tensors[f"{path}.self_attn.sinks"] = layer.sinks.bfloat16()
        tensors[f"{path}.input_layernorm.weight"] = layer.input_layernorm.bfloat16()
        tensors[f"{path}.post_attention_layernorm.weight"] = layer.post_attention_layernorm.bfloat16()
        tensors[f"{path}.mlp.router.weight"] = layer.router.bfloat16()
        tensors[f"{path}.mlp.router.bias"] = layer.router_bias.bfloat16()
        gate_up = torch.stack([layer.gate, layer.up], 2).flatten(1, 2)  # rows of gate and up in turn
        gate_up_bias = torch.stack([layer.gate_bias, layer.up_bias], 2).flatten(1, 2)
        for name, weight, bias in (("gate_up", gate_up, gate_up_bias), ("down", layer.down, layer.down_bias)):
            blocks, scales = packed(weight)
            tensors[f"{path}.mlp.experts.{name}_proj_blocks"] = blocks
            tensors[f"{path}.mlp.experts.{name}_proj_scales"] = scales
            tensors[f"{path}.mlp.experts.{name}_proj_bias"] = bias.bfloat16()
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def packed(weight: Tensor) -> tuple[Tensor, Tensor]:
    """float [E, rows, n] -> blocks U8 [E, rows, n / 32, 16], low nibble first, and scales U8 [E, rows, n / 32]."""
    exponent, values = mxfp4_parts(weight)
    codes = torch.zeros_like(values, dtype=torch.uint8)
    for value, code in CODE.items():
        codes[values.abs() == value] = code
    codes[values < 0] |= 8
    pairs = codes.unflatten(-1, (16, 2))
    return pairs[..., 0] | pairs[..., 1] << 4, (exponent[..., 0] + 127).to(torch.uint8)


@torch.no_grad()
def restore(network: Network, folder: Path) -> None:
    """Take the weights of a checkpoint that `export` wrote."""
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors")

    def take(parameter: Tensor, name: str) -> None:
        parameter.copy_(tensors[name])

    take(network.embed_tokens, "model.embed_tokens.weight")
    take(network.norm, "model.norm.weight")
    take(network.lm_head, "lm_head.weight")
    for index, layer in enumerate(network.layers):
        path = f"model.layers.{index}"
        for name in ("q", "k", "v", "o"):
            take(getattr(layer, f"{name}_proj"), f"{path}.self_attn.{name}_proj.weight")
            take(getattr(layer, f"{name}_bias"), f"{path}.self_attn.{name}_proj.bias")
        take(layer.sinks, f"{path}.self_attn.sinks")
        take(layer.input_layernorm, f"{path}.input_layernorm.weight")
        take(layer.post_attention_layernorm, f"{path}.post_attention_layernorm.weight")
        take(layer.router, f"{path}.mlp.router.weight")
        take(layer.router_bias, f"{path}.mlp.router.bias")
        gate_up, down = (
            unpacked(*(tensors[f"{path}.mlp.experts.{name}_proj_{part}"] for part in ("blocks", "scales")))
            for name in ("gate_up", "down")
        )
        gate_up_bias = tensors[f"{path}.mlp.experts.gate_up_proj_bias"]
        for offset, name in enumerate(("gate", "up")):
            getattr(layer, name).copy_(gate_up[:, offset::2])
            getattr(layer, f"{name}_bias").copy_(gate_up_bias[:, offset::2])
        layer.down.copy_(down)
        take(layer.down_bias, f"{path}.mlp.experts.down_proj_bias")


def unpacked(blocks: Tensor, scales: Tensor) -> Tensor:
    """What `packed` made -> float [E, rows, n]."""
    codes = torch.stack([blocks & 15, blocks >> 4], -1).flatten(-2).long()
    values = FP4[codes & 7] * (1 - 2 * (codes >> 3))
    return (values * torch.exp2(scales.float() - 127)[..., None]).flatten(-2)
