"""The layouts of gpt-oss checkpoints: which tensors each one has, and which canonical weights they hold.

Known layouts, all safetensors, distinguished by the names in their headers:

published   what the hub has (GptOssForCausalLM): experts in MXFP4, gate and up interleaved
original    what OpenAI's own code reads (the folder `original/`): other names, q, k and v stacked, a config of its own
plain       fine-tunes saved with the experts as plain numbers, inputs first
apart       each expert of its own as plain numbers, a linear layer or three (outputs first, as such layers are); where
            gate and up are in one, they are interleaved

Training tools put words of their own into names: see `published_name`. Knows nothing of files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from gptoss_mlx.model.bf16 import as_f32
from gptoss_mlx.model.config import ModelConfig

from .canonical_weights import Blocks, Plain, Rows
from .mxfp4 import BLOCK

Form = tuple[str, tuple[int, ...]]  # dtype and shape of a tensor


@dataclass(frozen=True)
class Layout:
    """The tensors of one kind of checkpoint, and how they become canonical weights."""

    name: str
    mark: str
    """A part of tensor names that only this layout has."""
    tensors: Callable[[ModelConfig], dict[str, Form]]
    weights: Callable[[str, Callable[[str], Rows], ModelConfig], Iterator[Plain | Blocks]]
    """A tensor's name, and what gives tensors by name -> the canonical weights that begin with this tensor."""


def expert_parts(module: str) -> list[tuple[str, slice]]:
    """The canonical modules inside a published one, and which of its rows are theirs: gate and up alternate."""
    if module.endswith("gate_up_proj"):
        path = module.removesuffix("gate_up_proj")
        return [(f"{path}gate_proj", slice(0, None, 2)), (f"{path}up_proj", slice(1, None, 2))]
    return [(module, slice(None))]


def _published_weights(name: str, tensor: Callable[[str], Rows], config: ModelConfig) -> Iterator[Plain | Blocks]:
    module, _, kind = name.rpartition("_")
    if ".mlp.experts." not in name:
        yield Plain(name, tensor(name))
    elif kind == "blocks":
        for part, rows in expert_parts(module):
            yield Blocks(part, _outputs(tensor(name), rows), _outputs(tensor(f"{module}_scales"), rows))
    elif kind == "bias":
        for part, rows in expert_parts(module):
            yield Plain(f"{part}.bias", _outputs(tensor(name), rows))


def _outputs(stack: Rows, rows: slice) -> Rows:
    """These outputs of each expert in a stack [E, outputs, ...]."""
    _, outputs, *rest = stack.shape
    count = len(range(*rows.indices(outputs)))
    return stack.part(lambda values: values[:, rows], count, *rest)


def _plain_weights(name: str, tensor: Callable[[str], Rows], config: ModelConfig) -> Iterator[Plain | Blocks]:
    if name.endswith(("gate_up_proj", "down_proj")):
        _, inputs, outputs = tensor(name).shape
        for part, rows in expert_parts(name):
            stack = tensor(name).part(lambda values: values.swapaxes(1, 2), outputs, inputs)
            yield Plain(f"{part}.weight", _outputs(stack, rows))
    else:
        yield from _published_weights(name, tensor, config)


def _original_weights(name: str, tensor: Callable[[str], Rows], config: ModelConfig) -> Iterator[Plain | Blocks]:
    """Each original tensor under its published name, cut where the published ones are."""
    if name.endswith(".scales"):
        return
    published = _published_name(name)
    if ".attn.qkv." in name:
        queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        start = 0
        for letter, rows in (("q", queries), ("k", keys), ("v", keys)):
            yield Plain(published.replace("qkv", letter), tensor(name).between(start, start + rows))
            start += rows
    elif name.endswith(".blocks"):
        of = {published: name, published.replace("_blocks", "_scales"): name.replace(".blocks", ".scales")}
        yield from _published_weights(published, lambda wanted: tensor(of[wanted]), config)
    else:
        yield from _published_weights(published, lambda wanted: tensor(name), config)


# Original name -> published name, outside the layers and within one.
_ORIGINAL_NAMES = {
    "embedding.weight": "model.embed_tokens.weight",
    "norm.scale": "model.norm.weight",
    "unembedding.weight": "lm_head.weight",
    "attn.norm.scale": "input_layernorm.weight",
    "attn.sinks": "self_attn.sinks",
    "attn.qkv.weight": "self_attn.qkv_proj.weight",
    "attn.qkv.bias": "self_attn.qkv_proj.bias",
    "attn.out.weight": "self_attn.o_proj.weight",
    "attn.out.bias": "self_attn.o_proj.bias",
    "mlp.norm.scale": "post_attention_layernorm.weight",
    "mlp.gate.weight": "mlp.router.weight",
    "mlp.gate.bias": "mlp.router.bias",
    "mlp.mlp1_weight.blocks": "mlp.experts.gate_up_proj_blocks",
    "mlp.mlp1_weight.scales": "mlp.experts.gate_up_proj_scales",
    "mlp.mlp1_bias": "mlp.experts.gate_up_proj_bias",
    "mlp.mlp2_weight.blocks": "mlp.experts.down_proj_blocks",
    "mlp.mlp2_weight.scales": "mlp.experts.down_proj_scales",
    "mlp.mlp2_bias": "mlp.experts.down_proj_bias",
}


def _published_name(name: str) -> str:
    if not name.startswith("block."):
        return _ORIGINAL_NAMES[name]
    _, layer, rest = name.split(".", 2)
    return f"model.layers.{layer}.{_ORIGINAL_NAMES[rest]}"


def published_tensors(config: ModelConfig) -> dict[str, Form]:
    """Name -> (dtype, shape) of every tensor in a published checkpoint of this configuration; BF16 may be F16 or F32 in
    a fine-tune."""
    hidden, intermediate, experts = config.hidden_size, config.intermediate_size, config.num_experts
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    tensors: dict[str, Form] = {}
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


def plain_tensors(config: ModelConfig) -> dict[str, Form]:
    """The same with the experts in BF16: [experts, inputs, outputs]."""
    tensors: dict[str, Form] = {}
    for name, (dtype, shape) in published_tensors(config).items():
        if name.endswith("_blocks"):
            experts, rows, blocks, _ = shape
            tensors[name.removesuffix("_blocks")] = ("BF16", (experts, blocks * BLOCK, rows))
        elif not name.endswith("_scales"):
            tensors[name] = (dtype, shape)
    return tensors


APART = re.compile(r"(.+\.mlp\.experts)\.(\d+)\.(\w+)\.(weight|bias)")


def _apart_weights(name: str, tensor: Callable[[str], Rows], config: ModelConfig) -> Iterator[Plain | Blocks]:
    """All experts begin with the first one."""
    if not (found := APART.fullmatch(name)):
        yield Plain(name, tensor(name))
    elif found[2] == "0":
        experts, _, projection, kind = found.groups()
        stack = _stacked([tensor(f"{experts}.{n}.{projection}.{kind}") for n in range(config.num_experts)])
        for part, rows in expert_parts(f"{experts}.{projection}"):
            yield Plain(f"{part}.{kind}", _outputs(stack, rows))


def _stacked(tensors: list[Rows]) -> Rows:
    def read(start: int, stop: int) -> np.ndarray:
        each = [tensor[:] for tensor in tensors[start:stop]]
        if len({values.dtype for values in each}) > 1:  # BF16 are bits, which are no numbers beside others
            each = [as_f32(values) for values in each]
        return np.stack(each)

    return Rows((len(tensors), *tensors[0].shape), read)


def apart_tensors(config: ModelConfig, gate_and_up: bool = False) -> dict[str, Form]:
    """The plain tensors with each expert's linear layers for themselves; `gate_and_up`: those two apart as well."""
    tensors: dict[str, Form] = {}
    for name, (dtype, shape) in plain_tensors(config).items():
        if ".mlp.experts." not in name:
            tensors[name] = dtype, shape
            continue
        kind = "bias" if name.endswith("_bias") else "weight"
        experts, projection = name.removesuffix("_bias").rsplit(".", 1)
        outputs, inputs = shape[-1], shape[1:-1]
        parts = {projection: outputs}
        if gate_and_up and projection == "gate_up_proj":
            parts = {"gate_proj": outputs // 2, "up_proj": outputs // 2}
        for number in range(config.num_experts):
            for part, rows in parts.items():
                tensors[f"{experts}.{number}.{part}.{kind}"] = dtype, (rows, *inputs)
    return tensors


def original_tensors(config: ModelConfig) -> dict[str, Form]:
    """The same under the names that OpenAI's own code reads."""
    published = published_tensors(config)
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    tensors: dict[str, Form] = {}
    within = [name for name in _ORIGINAL_NAMES if "." in name and name.split(".")[0] in ("attn", "mlp")]
    outside = [name for name in _ORIGINAL_NAMES if name not in within]
    for name in [f"block.{index}.{name}" for index in range(config.num_layers) for name in within] + outside:
        if ".qkv." in name:
            columns = (config.hidden_size,) if name.endswith("weight") else ()
            tensors[name] = ("BF16", (queries + 2 * keys, *columns))
        else:
            tensors[name] = published[_published_name(name)]
    return tensors


PUBLISHED = Layout("published", "_proj_blocks", published_tensors, _published_weights)
ORIGINAL = Layout("original", "attn.qkv.", original_tensors, _original_weights)
PLAIN = Layout("plain", "mlp.experts.gate_up_proj", plain_tensors, _plain_weights)
APART_FUSED = Layout("apart", ".experts.0.gate_up_proj.", apart_tensors, _apart_weights)
APART_SPLIT = Layout("apart", ".experts.0.gate_proj.", partial(apart_tensors, gate_and_up=True), _apart_weights)
LAYOUTS = (PUBLISHED, ORIGINAL, PLAIN, APART_FUSED, APART_SPLIT)  # the mark of PLAIN is also in PUBLISHED's names

# What wraps modules in training, and is left in the names of their tensors: torch.compile, DDP, FSDP, activation
# checkpoints, PEFT, models of text among other senses, and Unsloth's router.
WRAPPERS = frozenset(
    {
        "_orig_mod",
        "module",
        "_fsdp_wrapped_module",
        "_checkpoint_wrapped_module",
        "base_model",
        "language_model",
        "text_model",
        "linear",
    }
)
# What else is written for the published names within the experts: Unsloth's lists of linear layers, LLM Compressor's
# module in a module, and a suffix that was appended to one that was there.
_EXPERT_NAMES = (
    (re.compile(r"\.experts\.experts\."), ".experts."),
    (re.compile(r"\.experts\.(gate_up|down)_projs\.(\d+)\."), r".experts.\2.\1_proj."),
    (re.compile(r"_proj_(?:blocks|scales|bias)_(blocks|scales|bias)$"), r"_proj_\1"),
)


def published_name(name: str) -> str:
    """A tensor's published name, without what training tools put into names; other names are returned unchanged."""
    parts = [part for part in name.split(".") if part not in WRAPPERS]
    while parts[:1] == ["model"]:
        del parts[0]
    name = ".".join(parts)
    for pattern, published in _EXPERT_NAMES:
        name = pattern.sub(published, name)
    return f"model.{name}" if name.startswith(("layers.", "embed_tokens.", "norm.weight")) else name
