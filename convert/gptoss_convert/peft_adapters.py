"""Adapters that PEFT saved, and Tinker's, which are in the same file under names of their own.

PEFT     A [rank, inputs] and B [outputs, rank], under the published names; the experts' gate and up in one,
         interleaved, or apart; either all experts along one axis of ranks, or each expert for itself
Tinker   the same halves under other names; experts along an axis, where one half may be all experts'
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from reprlib import repr as shown
from typing import Any

import numpy as np

from gptoss_mlx.model.checkpoint import Checkpoint
from gptoss_mlx.model.config import ModelConfig

from .adapter_tensors import (
    FactorForm,
    Pair,
    canonical_shapes,
    checked_tensor,
    known_weight,
    low_ranks_of,
    number_of,
    pairs_of,
    published_shapes,
    rank_of,
    sizes_of,
)
from .layouts import expert_parts
from .lora import AdapterError, LowRank, WeightDelta

PEFT_MATRIX = FactorForm(("rank", "columns"), ("rows", "rank"), lambda a, b, _: (b, a))
PEFT_EMBEDDING = FactorForm(("rank", "rows"), ("columns", "rank"), lambda a, b, _: (a.T, b.T))
# Along the axis of all ranks, A counts through an expert's ranks first, and B through the experts.
PEFT_EXPERTS = FactorForm(
    ("ranks", "columns"),
    ("rows", "ranks"),
    lambda a, b, experts: (
        b.reshape(len(b), -1, experts).transpose(2, 0, 1),
        a.reshape(experts, -1, a.shape[1]),
    ),
)
# PEFT 0.19.0 with transformers 5, and later PEFT with transformers 4, take the experts' inputs for their outputs.
PEFT_EXPERTS_SWAPPED = FactorForm(
    ("ranks", "rows"),
    ("columns", "ranks"),
    lambda a, b, experts: (
        a.reshape(experts, -1, a.shape[1]).transpose(0, 2, 1),
        b.reshape(len(b), -1, experts).transpose(2, 1, 0),
    ),
)

PEFT_PREFIX = "base_model.model."
# Saved without PEFT's own function, the adapter's name is in those of the tensors.
PEFT_ADAPTER_NAME = re.compile(r"(?<=\.lora_[AB])\.(?!weight$)(\w+)(?=\.weight$)|(?<=\.lora_embedding_[AB])\.(\w+)$")
PEFT_HALVES = ((".lora_A.weight", ".lora_B.weight"), (".lora_embedding_A", ".lora_embedding_B"))
# Where these are trained, PEFT also saves what it added the factors to.
PEFT_BASES = {module: f"{PEFT_PREFIX}{module}.base_layer.weight" for module in ("model.embed_tokens", "lm_head")}
# Settings under which PEFT does more than add scale * B A to the weights as published, and their values under which it
# does not; absent, null, false and empty are always such values.
PEFT_HARMLESS: Mapping[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "init_lora_weights": (True, "gaussian", "eva", "orthogonal", "mica"),  # the others subtract from the weights
    "alora_invocation_tokens": (),
    "arrow_config": (),
    "fan_in_fan_out": (),
    "kasa_config": (),
    "layer_replication": (),
    "loftq_config": (),
    "lora_bias": (),
    "modules_to_save": (),
    "monteclora_config": (),
    "trainable_token_indices": (),
    "use_bdlora": (),
    "use_dora": (),
    "use_qalora": (),
}


def peft_deltas(settings: Mapping[str, Any], tensors: Checkpoint, config: ModelConfig) -> dict[str, WeightDelta]:
    tensors = _without_adapter_name(tensors)
    is_tinkers = any(mark in name for name in tensors.tensors for mark in TINKER_MARKS)
    if (kind := settings.get("peft_type", "LORA" if is_tinkers else None)) != "LORA":
        raise AdapterError(f"peft_type is {shown(kind)}, and only 'LORA' can be merged")
    for name, harmless in PEFT_HARMLESS.items():
        if (value := settings.get(name)) not in (None, False, [], {}, *harmless):
            raise AdapterError(f"{name} is {shown(value)}: only plain LoRA can be merged here; merge it with PEFT")
    if is_tinkers:
        return _tinker_deltas(settings, tensors, config)
    bases = {module: name for module, name in PEFT_BASES.items() if name in tensors.tensors}
    factors = [name for name in tensors.tensors if name not in bases.values()]
    pairs = pairs_of(factors, PEFT_PREFIX, PEFT_HALVES)
    weights = published_shapes(config)
    matrices = _peft_matrices(weights | canonical_shapes(config))
    stacks = _peft_stacks([pair for pair in pairs if STACK.fullmatch(pair.path)], tensors, weights)
    called = {pair.path: stacks[pair.path][0] if pair.path in stacks else pair.path for pair in pairs}
    scales = _peft_scales(settings, called.values())
    deltas: dict[str, WeightDelta] = {}
    for pair in pairs:
        if pair.path in stacks:
            module, form = stacks[pair.path]
            shape = weights[module]
            experts = list(range(shape[0]))
        else:
            module, expert, shape = known_weight(matrices, pair.path, pair.a)
            form = PEFT_EMBEDDING if pair.a.endswith(PEFT_HALVES[1]) else PEFT_MATRIX
            experts = [expert]
        low_ranks = low_ranks_of(tensors, pair, form, shape, *scales[called[pair.path]])
        for part, rows in expert_parts(module):
            added = deltas.setdefault(part, WeightDelta()).added
            for expert, low_rank in zip(experts, low_ranks, strict=True):
                if expert in added:
                    raise AdapterError(f"{pair.a!r} changes {module} a second time")
                added[expert] = replace(low_rank, left=low_rank.left[rows])
    for module, name in bases.items():
        if module not in deltas:
            raise AdapterError(f"{name!r} is a whole weight without LoRA, and only LoRA can be merged")
        deltas[module].base = checked_tensor(tensors, name, weights[module])
    return deltas


def _peft_matrices(weights: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[str, int, tuple[int, ...]]]:
    """Path of a linear layer in training -> the published or canonical module, which of its experts, and the shape.

    Where training in 4 bits needs linear layers, Unsloth makes one of each expert, in a list with a plural's name;
    others, and what vLLM takes, have them in the experts, gate and up apart.
    """
    matrices: dict[str, tuple[str, int, tuple[int, ...]]] = {}
    for module, shape in weights.items():
        if len(shape) == 2:
            matrices[module] = (module, 0, shape)
            continue
        experts, _, projection = module.rpartition(".")
        for expert in range(shape[0]):
            for path in (f"{module}s.{expert}", f"{experts}.{expert}.{projection}"):
                matrices[path] = (module, expert, shape[1:])
    return matrices


# Elsewhere the experts' weights are parameters of one module. A second one that is trained is wrapped around the first,
# and no name says which is which: that is for the shapes to say.
STACK = re.compile(r"(.+\.mlp\.experts)(\.base_layer)*")


def _peft_stacks(
    pairs: list[Pair], tensors: Checkpoint, weights: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[str, FactorForm]]:
    """Path of a pair -> the published module that it changes, and the form, which is one in the whole adapter."""

    def candidates(pair: Pair, form: FactorForm) -> list[str]:
        found = tensors.tensors[pair.a].shape[-1:] + tensors.tensors[pair.b].shape[:1]
        experts = STACK.sub(r"\1", pair.path)
        modules = (f"{experts}.gate_up_proj", f"{experts}.down_proj")
        sizes = {module: sizes_of(known_weight(weights, module, pair.a), rank=0) for module in modules}
        return [module for module in modules if found == (sizes[module][form.a[1]], sizes[module][form.b[0]])]

    forms = (PEFT_EXPERTS, PEFT_EXPERTS_SWAPPED)
    fitting = [form for form in forms if all(candidates(pair, form) for pair in pairs)]
    if not fitting:
        strange = next((pair for pair in pairs if not any(candidates(pair, form) for form in forms)), pairs[0])
        shapes = " and ".join(str(list(tensors.tensors[name].shape)) for name in (strange.a, strange.b))
        raise AdapterError(f"{strange.a!r} and its other half are {shapes}, which fits no weight of the experts here")
    if pairs and len(fitting) > 1:
        raise AdapterError(
            f"{pairs[0].a!r} may have inputs and outputs swapped, as some versions of PEFT save experts, and its shape"
            " cannot tell: merge it with the PEFT that saved it"
        )
    return {pair.path: (candidates(pair, form)[0], form) for form in fitting for pair in pairs}


def _peft_scales(settings: Mapping[str, Any], modules: Iterable[str]) -> dict[str, tuple[int, float]]:
    """Each module's rank and scale."""
    parameters = settings.get("target_parameters") or []
    if not isinstance(parameters, list):
        raise AdapterError("target_parameters is malformed")

    def key(module: str) -> str:
        """PEFT's name of it: the parameter's, if that was a target."""
        is_target = any(f".{module}.weight".endswith(f".{target}") for target in parameters)
        return f"{module}.weight" if is_target else module

    keys = {module: key(module) for module in modules}
    ranks = _peft_setting(settings, "r", "rank_pattern", keys.values())
    alphas = _peft_setting(settings, "lora_alpha", "alpha_pattern", keys.values())
    scales = {}
    for module, key_ in keys.items():
        rank, alpha = rank_of(ranks[key_], "r"), number_of(alphas[key_], "lora_alpha")
        scales[module] = rank, alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    return scales


def _peft_setting(settings: Mapping[str, Any], name: str, exceptions: str, keys: Iterable[str]) -> dict[str, Any]:
    """A setting of each key: that of the first exception whose pattern is the end of the key, or the general one."""
    patterns = settings.get(exceptions) or {}
    if not isinstance(patterns, dict):
        raise AdapterError(f"{exceptions} is malformed")
    keys = list(dict.fromkeys(keys))
    found = _first_matches(list(patterns), keys, exceptions) if patterns else [None] * len(keys)
    values = list(patterns.values())
    general = settings.get(name)
    return {key: general if n is None else values[n] for key, n in zip(keys, found, strict=True)}


# Matches as PEFT does; in a process of its own, because a regular expression can take forever and has to be stopped.
MATCHING = r"""
import json, re, sys
patterns, keys = json.load(sys.stdin)
patterns = [re.compile(rf"(.*\.)?({pattern})$") for pattern in patterns]
print(json.dumps([next((n for n, pattern in enumerate(patterns) if pattern.match(key)), None) for key in keys]))
"""
MAX_MATCH_SECONDS = 20  # seconds; all keys of gpt-oss-120b take none


def _first_matches(patterns: list[str], keys: list[str], setting: str) -> list[int | None]:
    """For each key, the number of the first pattern that matches."""
    text = json.dumps([patterns, keys])
    command = [sys.executable, "-I", "-c", MATCHING]
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=MAX_MATCH_SECONDS)
    except subprocess.TimeoutExpired:
        raise AdapterError(f"{setting} has a pattern that takes too long: {shown(patterns)}") from None
    if done.returncode:
        raise AdapterError(f"{setting} has a pattern that is not a regular expression: {shown(patterns)}")
    return json.loads(done.stdout)


def _without_adapter_name(tensors: Checkpoint) -> Checkpoint:
    adapters = {found[1] or found[2] for found in map(PEFT_ADAPTER_NAME.search, tensors.tensors) if found}
    if len(adapters) > 1:
        raise AdapterError(f"it holds several adapters: {', '.join(sorted(adapters))}; save one of them")
    return tensors.renamed({PEFT_ADAPTER_NAME.sub("", name): name for name in tensors.tensors})


TINKER_MARKS = (".attn.", ".mlp.experts.w", ".unembed_tokens.")
TINKER_NAMES = {
    ".attn.": ".self_attn.",
    ".experts.w1": ".experts.gate_proj",
    ".experts.w2": ".experts.down_proj",
    ".experts.w3": ".experts.up_proj",
    "model.unembed_tokens": "lm_head",
}


def _tinker_deltas(settings: Mapping[str, Any], tensors: Checkpoint, config: ModelConfig) -> dict[str, WeightDelta]:
    """The rank is that of the tensors, which is not one for all; the scale is."""
    scale = number_of(settings.get("lora_alpha"), "lora_alpha") / rank_of(settings.get("r"), "r")
    weights = canonical_shapes(config)
    deltas = {}
    for pair in pairs_of(tensors.tensors, PEFT_PREFIX, PEFT_HALVES):
        module = pair.path
        for name, canonical in TINKER_NAMES.items():
            module = module.replace(name, canonical)
        *experts, rows, columns = known_weight(weights, module, pair.a)
        rank = tensors.tensors[pair.b].shape[-1]
        a, b = (
            _of_all_experts(tensors, name, experts, sides)
            for name, sides in ((pair.a, (rank, columns)), (pair.b, (rows, rank)))
        )
        low_ranks = [LowRank(scale, *sides) for sides in (zip(b, a, strict=True) if experts else [(b, a)])]
        deltas[module] = WeightDelta(dict(enumerate(low_ranks)))
    return deltas


def _of_all_experts(tensors: Checkpoint, name: str, experts: list[int], sides: tuple[int, ...]) -> np.ndarray:
    """A tensor of all experts, who may share a single one."""
    shared = bool(experts) and tensors.tensors[name].shape[:1] == (1,)
    return np.broadcast_to(checked_tensor(tensors, name, (*([1] if shared else experts), *sides)), (*experts, *sides))
