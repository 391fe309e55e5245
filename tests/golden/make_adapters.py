#!/usr/bin/env python3
"""Golden adapters: those that PEFT saves for a small gpt-oss, and the weights that its merge_and_unload gives, in FP32.

    python tests/golden/make_adapters.py [CASE ...] (needs torch, transformers and peft; writes tests/golden/adapters/)

The checkpoint is that of tests/checkpoints.py. Each adapter is saved, loaded into the published weights and merged
there, as its user would. A case is a folder: adapter_config.json and adapter_model.safetensors as PEFT writes them, and
merged.safetensors, the weights that the merge changed.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from checkpoints import config_of
from golden.make_logits import oracle

GOLDEN = Path(__file__).with_name("adapters")
# Experts as wide as the model, as published: their shapes alone do not tell inputs from outputs.
CONFIG = config_of(
    num_hidden_layers=2,
    hidden_size=32,
    intermediate_size=32,
    head_dim=16,
    num_attention_heads=3,
    num_key_value_heads=1,
    num_local_experts=2,
    num_experts_per_tok=2,
    vocab_size=40,
)
SEED = 8
EXPERTS = ["1.mlp.experts.gate_up_proj", "1.mlp.experts.down_proj"]


def _as_published(model) -> None:
    pass


def _inputs_taken_for_outputs(model) -> None:
    """As PEFT 0.19.1 and later see transformers 4, which does not say that experts are stored inputs first."""
    for layer in model.model.layers:
        layer.mlp.experts.is_transposed = False


def _experts_as_linear_layers(model) -> None:
    """As Unsloth trains in 4 bits: a linear layer for each expert."""
    import torch

    def linear(weight):
        layer = torch.nn.Linear(*weight.shape, bias=False)
        layer.weight.data = weight.T.clone()
        return layer

    for layer in model.model.layers:
        experts, layer.mlp.experts = layer.mlp.experts, torch.nn.Module()
        for name in ("gate_up_proj", "down_proj"):
            setattr(layer.mlp.experts, f"{name}s", torch.nn.ModuleList(map(linear, getattr(experts, name).data)))


def _experts_as_networks(model) -> None:
    """As LLM Compressor saves experts and vLLM loads them: three linear layers for each, gate and up apart."""
    import torch

    def linear(weight):
        layer = torch.nn.Linear(*weight.shape, bias=False)
        layer.weight.data = weight.T.clone()
        return layer

    for layer in model.model.layers:
        experts, layer.mlp.experts = layer.mlp.experts, torch.nn.ModuleList()
        for gate_up, down in zip(experts.gate_up_proj.data, experts.down_proj.data, strict=True):
            expert = torch.nn.Module()
            expert.gate_proj, expert.up_proj, expert.down_proj = map(linear, (gate_up[:, ::2], gate_up[:, 1::2], down))
            layer.mlp.experts.append(expert)


def _another_head(model) -> None:
    """A head that has been trained, or resized and cut again: PEFT saves it with the adapter."""
    model.lm_head.weight.data += 0.5


@dataclass(frozen=True)
class Case:
    settings: dict[str, Any]
    """The arguments of LoraConfig."""
    dtype: str = "float32"
    model: Callable[[Any], None] = _as_published
    """Changes the model as a peculiar installation does, in training and when merging."""
    trained: Callable[[Any], None] = _as_published
    """Changes only the model that is trained."""


CASES = {
    "attention": Case({"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}),
    "experts": Case(
        {
            "r": 3,
            "lora_alpha": 6,
            "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
            "layers_to_transform": 1,
            "target_parameters": EXPERTS,
        },
        dtype="bfloat16",
    ),
    "experts_swapped": Case(
        {"r": 3, "lora_alpha": 6, "target_modules": [], "target_parameters": EXPERTS}, model=_inputs_taken_for_outputs
    ),
    "experts_apart": Case(
        {
            "r": 3,
            "lora_alpha": 6,
            "target_modules": ["1.mlp.experts.gate_up_projs.1", "0.mlp.experts.down_projs.0"],
            "alpha_pattern": {"down_projs.0": 2},
        },
        model=_experts_as_linear_layers,
    ),
    "experts_as_networks": Case(
        {
            "r": 3,
            "lora_alpha": 6,
            "target_modules": ["1.gate_proj", "0.up_proj", "1.up_proj", "0.mlp.experts.0.down_proj"],
            "rank_pattern": {r"layers\.1\.mlp\.experts\.\d+\.up_proj": 2},
        },
        model=_experts_as_networks,
    ),
    "regular_expressions": Case(
        {
            "r": 4,
            "lora_alpha": 8,
            "target_modules": r".*\.self_attn\.[qkvo]_proj",
            "rank_pattern": {r"layers\.0\.self_attn\.(q|k)_proj": 2, r"^model(?:\.\w+)*\.v_proj": 3, "q_proj": 1},
            "alpha_pattern": {r"model\.layers\.[01]\.self_attn\.o_proj": 16, r"\d+.self_attn.[qk]_proj": 3},
        },
    ),
    "patterns": Case(
        {
            "r": 4,
            "lora_alpha": 8,
            "use_rslora": True,
            "target_modules": ["k_proj", "o_proj", "embed_tokens", "lm_head"],
            "target_parameters": ["mlp.router.weight", *EXPERTS[:1]],
            "rank_pattern": {"o_proj": 2, "mlp.experts.gate_up_proj": 5},
            "alpha_pattern": {"k_proj": 24, "^model.layers.0.self_attn.o_proj": 3, "router": 1000, "router.weight": 5},
        },
        dtype="float16",
        trained=_another_head,
    ),
}


def main(names: list[str]) -> None:
    import peft
    import torch
    from safetensors.torch import load_file, save_file

    for name in names or CASES:
        folder, case, random = GOLDEN / name, CASES[name], np.random.RandomState(len(name))
        shutil.rmtree(folder, ignore_errors=True)
        model = _model(case)
        case.trained(model)
        model = peft.get_peft_model(model, peft.LoraConfig(**case.settings))
        for parameter, values in model.named_parameters():
            if "lora_" in parameter:
                values.data = torch.from_numpy(random.standard_normal(values.shape).astype(np.float32) / 4)
        model.save_pretrained(folder)
        (folder / "README.md").unlink()
        tensors = load_file(folder / "adapter_model.safetensors")
        tensors = {name: tensor.to(getattr(torch, case.dtype)) for name, tensor in tensors.items()}
        save_file(tensors, folder / "adapter_model.safetensors")

        published = _weights(_model(case))
        merged = _weights(peft.PeftModel.from_pretrained(_model(case), folder).merge_and_unload())
        changed = {name: tensor for name, tensor in merged.items() if not torch.equal(tensor, published[name])}
        save_file(changed, folder / "merged.safetensors")
        print(
            f"{name}: {sum(file.stat().st_size for file in folder.iterdir())} bytes",
            *tensors,
            "->",
            *changed,
            sep="\n  ",
        )


def _model(case: Case):
    model = oracle(CONFIG, SEED)
    case.model(model)
    return model


def _weights(model) -> dict[str, Any]:
    """Under the published names, experts together."""
    import torch

    state = dict(model.state_dict())
    for path in [name.removesuffix(".0.gate_proj.weight") for name in state if name.endswith(".0.gate_proj.weight")]:
        experts = range(CONFIG["num_local_experts"])
        gate, up, down = (
            torch.stack([state.pop(f"{path}.{expert}.{part}_proj.weight").T for expert in experts])
            for part in ("gate", "up", "down")
        )
        state[f"{path}.gate_up_proj"] = torch.stack((gate, up), dim=-1).flatten(-2)
        state[f"{path}.down_proj"] = down
    for name in [name.removesuffix("s.0.weight") for name in state if name.endswith("_projs.0.weight")]:
        experts = [state.pop(f"{name}s.{expert}.weight").T for expert in range(CONFIG["num_local_experts"])]
        state[name] = torch.stack(experts)
    return state


if __name__ == "__main__":
    main(sys.argv[1:])
