#!/usr/bin/env python3
"""Golden logits: transformers' GptOssForCausalLM in FP32 on random checkpoints, for tests/model/test_network.py.

    python tests/golden/make_logits.py            (needs torch and transformers; writes tests/golden/logits.npz)

The checkpoints are those of tests/checkpoints.py. Before anything is written, this script makes sure that the cases can
distinguish a wrong model from a right one: each of SABOTAGES must move the logits of at least one case by a hundred
times the test's tolerance.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from checkpoints import config_of, tensors_of
from golden.cases import CASES, prompt_of

GOLDEN = Path(__file__).with_name("logits.npz")
TOLERANCE = 1e-4
FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def main() -> None:
    import transformers

    golden, worst = {}, {}
    for name, case in CASES.items():
        model = oracle(config_of(**case.config), case.seed)
        ids = prompt_of(case)
        right = logits_of(model, ids)[case.positions]
        golden[name] = right.astype(np.float32)
        for label, sabotage in SABOTAGES.items():
            broken = oracle(config_of(**case.config), case.seed)
            sabotage(broken)
            moved = np.abs(logits_of(broken, ids)[case.positions] - right).max() / np.abs(right).max()
            worst[label] = max(worst.get(label, 0), moved)
            print(f"{name:24} {label:28} moves the logits by {moved:.1e}", flush=True)
    for label, moved in worst.items():
        if moved < 100 * TOLERANCE:
            raise SystemExit(f"no case detects: {label} (moves the logits by {moved:.1e})")
    np.savez_compressed(GOLDEN, made_by=np.array(f"transformers {transformers.__version__}"), **golden)
    print(f"{GOLDEN.name}: {GOLDEN.stat().st_size} bytes")


def oracle(config: dict[str, Any], seed: int) -> Any:
    """The model of transformers in FP32, with the weights of a random checkpoint."""
    import torch
    from transformers import GptOssConfig, GptOssForCausalLM

    plain = {name: value for name, value in config.items() if name != "quantization_config"}
    model = GptOssForCausalLM(GptOssConfig(**plain, attn_implementation="eager")).eval().to(torch.float32)
    state = {name: torch.from_numpy(value) for name, value in dequantized(tensors_of(config, seed)).items()}
    model.load_state_dict(state, strict=True)
    return model


def logits_of(model: Any, ids: list[int]) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


def dequantized(tensors: dict[str, tuple[np.ndarray, str]]) -> dict[str, np.ndarray]:
    """FP32 in transformers' layout: experts [E, inputs, outputs]."""
    out = {}
    for name, (array, dtype) in tensors.items():
        if dtype == "BF16":
            out[name] = (array.astype(np.uint32) << 16).view(np.float32)
        elif name.endswith("_blocks"):
            scales, _ = tensors[name.replace("_blocks", "_scales")]
            values = FP4[np.stack([array & 15, array >> 4], axis=-1)].reshape(*array.shape[:-1], 32)
            values = np.ldexp(values, scales.astype(np.int32)[..., None] - 127)
            out[name.removesuffix("_blocks")] = np.ascontiguousarray(
                values.reshape(*array.shape[:2], -1).swapaxes(1, 2)
            )
    return out


def _no_sinks(model) -> None:
    for layer in model.model.layers:
        layer.self_attn.sinks.data.fill_(-1e9)


def _rounded_yarn_range(model) -> None:
    rotary = model.model.rotary_emb
    config = rotary.config
    config.rope_parameters = config.rope_parameters | {"truncate": True}
    rotary.__init__(config)


def _no_mscale(model) -> None:
    model.model.rotary_emb.attention_scaling = 1.0


def _window_longer_by_one(model) -> None:
    model.config.sliding_window += 1


def _no_clamp(model) -> None:
    for layer in model.model.layers:
        layer.mlp.experts.limit = 1e9


def _one_expert_less(model) -> None:
    for layer in model.model.layers:
        layer.mlp.router.top_k = max(1, layer.mlp.router.top_k - 1)


def _no_router_bias(model) -> None:
    for layer in model.model.layers:
        layer.mlp.router.bias.data.zero_()


SABOTAGES = {
    "without sinks": _no_sinks,
    "with a rounded YaRN range": _rounded_yarn_range,
    "without YaRN's attention scaling": _no_mscale,
    "with a window of one more": _window_longer_by_one,
    "without the SwiGLU clamps": _no_clamp,
    "with one expert less": _one_expert_less,
    "without the router's bias": _no_router_bias,
}


if __name__ == "__main__":
    main()
