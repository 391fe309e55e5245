"""A checkpoint on disk -> one stream of canonical weights.

Canonical: MLX-LM's names; the experts' gate, up and down apart; a weight is either plain numbers (BF16, or F16 or F32,
in which fine-tunes are saved too) or MXFP4. Which layout it came from ends here. Known layouts, all safetensors, told
apart by their headers:

published   what the hub has (GptOssForCausalLM): experts in MXFP4, gate and up interleaved
original    what OpenAI's own code reads (the folder `original/`): other names, q, k and v stacked, a config of its own
plain       fine-tunes saved with the experts as plain numbers, inputs first
apart       each expert of its own as plain numbers, a linear layer or three (outputs first, as such layers are); where
            gate and up are in one, they are interleaved

Names may have in them what training tools put there: see `published_name`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from gptoss_mlx.engine.special_tokens import NAMES as HARMONY
from gptoss_mlx.engine.tokenizer import Tokenizer
from gptoss_mlx.errors import GptOssError
from gptoss_mlx.model.bf16 import as_f32, f32_to_bf16
from gptoss_mlx.model.checkpoint import FLOATS, Checkpoint, CheckpointError
from gptoss_mlx.model.config import ModelConfig, read_config
from gptoss_mlx.model.recognition import check_form
from gptoss_mlx.untrusted import lexists

from .errors import ConvertError
from .mxfp4 import BLOCK, NOT_A_NUMBER, dequantized

TOKENIZER = "tokenizer.json"
# Copied as they are, where a source has them.
COMPANIONS = (
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
    "LICENSE",
    "USAGE_POLICY",
)
TOKENIZER_FROM = f"openai/gpt-oss-20b {TOKENIZER}"  # all models of the family have the same
SIGNLESS, TOO_LARGE = np.uint16(0x7FFF), np.uint16((127 + 60) << 7)  # BF16: all but the sign; 2^60
TOO_LARGE_FLOAT = np.float32(2.0**60)

CONVERTED = ".experts.gate_proj.weight"  # in no layout of a source
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"

Form = tuple[str, tuple[int, ...]]  # dtype and shape of a tensor


@dataclass(frozen=True)
class Rows:
    """A tensor, or a part of one, that is read from its file where it is asked for rows (of the first axis)."""

    shape: tuple[int, ...]
    read: Callable[[int, int], np.ndarray]
    """Rows start..stop."""

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, _ = rows.indices(len(self))
        return self.read(start, stop)

    def stretch(self, start: int, stop: int) -> Rows:
        """Only rows start..stop."""
        return Rows((stop - start, *self.shape[1:]), lambda a, b: self.read(start + a, start + b))

    def part(self, cut: Callable[[np.ndarray], np.ndarray], *shape: int) -> Rows:
        """`cut` of any rows, [rows, *shape]."""
        return Rows((len(self), *shape), lambda start, stop: cut(self.read(start, stop)))


@dataclass(frozen=True)
class Plain:
    """A tensor of plain numbers as its file has them: BF16, which are its bits in uint16, F16 or F32."""

    name: str
    values: Rows

    def read(self, rows: slice) -> np.ndarray:
        """uint16 [rows, ...]: BF16, to which F16 and F32 are rounded. Raises ConvertError for what is no weight."""
        stored = self._checked(rows)
        return stored if stored.dtype == np.uint16 else f32_to_bf16(stored)

    def as_f32(self, rows: slice) -> np.ndarray:
        """The values as they are stored, in float32, which holds them all."""
        return as_f32(self._checked(rows))

    def _checked(self, rows: slice) -> np.ndarray:
        """uint16 or float32."""
        stored = self.values[rows]
        if stored.dtype == np.uint16:
            wrong = (stored & SIGNLESS >= TOO_LARGE).any()
        else:
            stored = stored.astype(np.float32)
            wrong = not (np.abs(stored) < TOO_LARGE_FLOAT).all()
        if wrong:
            raise ConvertError(
                f"{self.name} has values that are not a number, or not below 2^60: the source is corrupt"
            )
        return stored

    @property
    def module(self) -> str:
        return self.name.removesuffix(".weight")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def is_matrix(self) -> bool:
        return len(self.shape) >= 2 and self.name.endswith(".weight")


@dataclass(frozen=True)
class Blocks:
    """A weight of stacked experts in MXFP4: blocks uint8 [E, rows, n, 16], scales uint8 [E, rows, n]."""

    module: str
    blocks: Rows
    scales: Rows

    def read(self, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        """Blocks and scales of these experts. Raises ConvertError for what is no scale."""
        blocks, scales = self.blocks[rows], self.scales[rows]
        if (scales == NOT_A_NUMBER).any():
            raise ConvertError(f"{self.module} has a scale that is not a number (E8M0 255): the source is corrupt")
        return blocks, scales

    def as_f32(self, rows: slice) -> np.ndarray:
        """float32 [experts, rows, columns]."""
        return dequantized(*self.read(rows))

    @property
    def name(self) -> str:
        return f"{self.module}.weight"

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.scales.shape[:2], self.scales.shape[2] * BLOCK)

    is_matrix = True


class Adapter(Protocol):
    """What changes weights on the way: `adapters.Adapter`."""

    sha256: Mapping[str, str]
    """File name -> SHA-256."""

    def changes(self, item: Plain | Blocks) -> bool:
        """Whether it changes this weight."""

    def merged(self, item: Plain | Blocks, rows: slice) -> np.ndarray:
        """float32 [rows, ...]: the weight with what the adapter adds."""


@dataclass(frozen=True)
class Merged:
    """A weight that an adapter changes."""

    item: Plain | Blocks
    adapter: Adapter

    def as_f32(self, rows: slice) -> np.ndarray:
        """float32 [rows, ...]. Raises ConvertError for what is no weight."""
        return self.adapter.merged(self.item, rows)

    @property
    def name(self) -> str:
        return self.item.name

    @property
    def module(self) -> str:
        return self.item.module

    @property
    def shape(self) -> tuple[int, ...]:
        return self.item.shape

    is_matrix = True


Weight = Plain | Blocks | Merged


@dataclass(frozen=True)
class Layout:
    """What one kind of checkpoint holds, and how it becomes canonical weights."""

    name: str
    mark: str
    """A part of a name that only this layout has."""
    tensors: Callable[[ModelConfig], dict[str, Form]]
    weights: Callable[[str, Callable[[str], Rows], ModelConfig], Iterator[Plain | Blocks]]
    """A tensor's name, and what gives tensors by name -> the canonical weights that begin with this tensor."""


@dataclass(frozen=True)
class Unit:
    """Weights that come from the same tensors, the files that hold these, and their dtypes."""

    weights: tuple[Weight, ...]
    files: frozenset[Path]
    dtypes: frozenset[str]


class Source:
    """A folder in one of the layouts, whose headers have been checked against its config. Raises GptOssError.

    With an `adapter`, its weights are those of the folder with the adapter's changes.
    """

    adapter: Adapter | None = None

    def __init__(self, folder: Path, checkpoint: Checkpoint | None = None):
        """With a `checkpoint` at hand, its files may come into the folder later."""
        self.folder = folder
        self.raw_config = published_config(folder)
        self.config = ModelConfig.of_folder(folder, self.raw_config)
        self.checkpoint = _renamed(checkpoint or Checkpoint.open(folder))
        check_form(folder, self.raw_config, self.checkpoint.tensors)
        # Gate and up are alternate rows of the same tensors, and are converted in turns.
        self._read = lru_cache(maxsize=2)(self.checkpoint.read)
        self.layout = _layout_of(self.checkpoint)
        # What is not stored because it is the same as another tensor.
        self._stored_as = {}
        if self.raw_config.get("tie_word_embeddings") is True and HEAD not in self.checkpoint.tensors:
            self._stored_as = {HEAD: EMBEDDING}
        stored = {name: form for name, form in self.tensors.items() if name not in self._stored_as}
        _check(self.checkpoint, stored, self.layout.name)

    @property
    def tensors(self) -> dict[str, Form]:
        """Name -> (dtype, shape) of all that a checkpoint of this layout has."""
        return self.layout.tensors(self.config)

    @property
    def shards(self) -> list[Path]:
        """The source files, in order of name."""
        return sorted(set(self.checkpoint.file_of.values()))

    def companion(self, name: str) -> Path | None:
        """A file beside the weights; an `original/` folder has the tokenizer's above it."""
        found = next((folder / name for folder in self._folders if (folder / name).is_file()), None)
        if found and not _is_at_home(found):
            raise CheckpointError(f"{found} is a link that leaves its folder: what it leads to is not for others")
        return found

    @property
    def _folders(self) -> tuple[Path, ...]:
        """Where the files beside the weights are looked for."""
        return (self.folder, self.folder.parent) if self.layout is ORIGINAL else (self.folder,)

    @property
    def has_tokenizer(self) -> bool:
        return any(lexists(folder / TOKENIZER) for folder in self._folders)

    def tokenizer(self) -> Tokenizer:
        """The source's own. Raises ConvertError where there is none, and for what is not one of this model."""
        folder = next((folder for folder in self._folders if lexists(folder / TOKENIZER)), self.folder)
        try:
            tokenizer = Tokenizer.load(folder)
            largest = max(tokenizer.largest_id, *map(tokenizer.special, HARMONY))
        except GptOssError as error:
            raise ConvertError(f"{error}; `hf download {TOKENIZER_FROM}` brings the published one") from None
        if largest >= self.config.vocab_size:
            raise ConvertError(
                f"{folder / TOKENIZER} has the id {largest:,}, and the model a vocabulary of"
                f" {self.config.vocab_size:,}: it is another model's"
            )
        return tokenizer

    def weights(self) -> Iterator[Weight]:
        """Every weight of the model, layer by layer; nothing has been read yet."""
        for unit in self.units():
            yield from unit.weights

    def units(self) -> Iterator[Unit]:
        """The same, with the files that each comes from."""
        for name in self.tensors:
            files: set[Path] = set()
            dtypes: set[str] = set()

            def rows(name: str, files: set[Path] = files, dtypes: set[str] = dtypes) -> Rows:
                name = self._stored_as.get(name, name)
                files.add(self.checkpoint.file_of[name])
                tensor = self.checkpoint.tensors[name]
                dtypes.add(tensor.dtype)
                return Rows(tensor.shape, partial(self._read, name))

            if weights := tuple(map(self._merged, self.layout.weights(name, rows, self.config))):
                yield Unit(weights, frozenset(files), frozenset(dtypes))

    def _merged(self, item: Plain | Blocks) -> Weight:
        return Merged(item, self.adapter) if self.adapter and self.adapter.changes(item) else item


def _is_at_home(path: Path) -> bool:
    """Whether a link stays in its folder, or in the blobs of the hub's cache, of which that is a snapshot."""
    target, folder = path.resolve(), path.parent.resolve()
    snapshot = folder.parent.name == "snapshots"
    return target.is_relative_to(folder) or (snapshot and target.is_relative_to(folder.parent.parent / "blobs"))


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
    """Of each expert in a stack [E, outputs, ...] these outputs."""
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
            yield Plain(published.replace("qkv", letter), tensor(name).stretch(start, start + rows))
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
    """The published name of a tensor whose name has in it what training tools put there; others as they are."""
    parts = [part for part in name.split(".") if part not in WRAPPERS]
    while parts[:1] == ["model"]:
        del parts[0]
    name = ".".join(parts)
    for pattern, published in _EXPERT_NAMES:
        name = pattern.sub(published, name)
    return f"model.{name}" if name.startswith(("layers.", "embed_tokens.", "norm.weight")) else name


def _renamed(checkpoint: Checkpoint) -> Checkpoint:
    names: dict[str, str] = {}
    for name in checkpoint.tensors:
        if (other := names.setdefault(published_name(name), name)) != name:
            raise CheckpointError(f"{checkpoint.folder} has the same tensor twice: {other!r} and {name!r}")
    return checkpoint.renamed(names)


def _layout_of(checkpoint: Checkpoint) -> Layout:
    names = checkpoint.tensors
    if any(CONVERTED in name for name in names):
        raise CheckpointError(
            f"{checkpoint.folder} has been converted already, by this program or MLX-LM: `gptoss-mlx chat"
            f" {checkpoint.folder}` runs it; for another recipe, convert what it was made from"
        )
    return next((layout for layout in LAYOUTS if any(layout.mark in name for name in names)), PUBLISHED)


# The original config's names for what the published one says otherwise.
_ORIGINAL_CONFIG = {"num_experts": "num_local_experts", "experts_per_token": "num_experts_per_tok"}


def published_config(folder: Path) -> dict[str, Any]:
    """config.json as the published checkpoints write it, translated from the original's where it is that one."""
    return as_published(read_config(folder))


def as_published(data: Any) -> Any:
    """The same of what a config.json holds."""
    if not isinstance(data, dict) or "model_type" in data or "num_experts" not in data:
        return data
    return _translated(data)


def _translated(original: Mapping[str, Any]) -> dict[str, Any]:
    rope = {
        "rope_type": "yarn",
        "factor": original.get("rope_scaling_factor", 32.0),
        "beta_fast": original.get("rope_ntk_beta", 32.0),
        "beta_slow": original.get("rope_ntk_alpha", 1.0),
        "truncate": False,
        "original_max_position_embeddings": original.get("initial_context_length", 4096),
    }
    kept = {_ORIGINAL_CONFIG.get(name, name): value for name, value in original.items()}
    for name in ("rope_scaling_factor", "rope_ntk_alpha", "rope_ntk_beta"):
        kept.pop(name, None)
    return {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "attention_bias": True,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-05,
        "tie_word_embeddings": False,
        "max_position_embeddings": 131072,
        "eos_token_id": 200002,
        "pad_token_id": 199999,
        "rope_scaling": rope,
    } | kept


def _check(checkpoint: Checkpoint, wanted: dict[str, Form], layout: str) -> None:
    found = checkpoint.tensors
    if missing := [name for name in wanted if name not in found]:
        raise CheckpointError(
            f"{checkpoint.folder} is not a gpt-oss checkpoint in the {layout} layout: it lacks {_some(missing)}"
        )
    if unknown := [tensor.name for name, tensor in found.items() if name not in wanted]:
        raise CheckpointError(f"{checkpoint.folder} has tensors that gpt-oss does not: {_some(unknown)}")
    for name, (dtype, shape) in wanted.items():
        if found[name].shape != shape:
            raise CheckpointError(
                f"{checkpoint.file_of[name]}: {found[name].name!r} is {list(found[name].shape)}, and config.json asks"
                f" for {list(shape)}"
            )
        known = FLOATS if dtype == "BF16" else (dtype,)
        if found[name].dtype not in known:
            raise CheckpointError(
                f"{checkpoint.file_of[name]}: {found[name].name!r} is {found[name].dtype}, and only"
                f" {' or '.join(known)} can be converted there"
            )


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
