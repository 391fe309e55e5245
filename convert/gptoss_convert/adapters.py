"""A LoRA adapter on disk -> what it adds to the canonical weights: scale * left @ right, of low rank.

Which layout it came from ends here. Three are known, told apart by the file that holds the tensors, and by names:

PEFT     adapter_model.safetensors: A [rank, inputs] and B [outputs, rank], under the published names; the experts' gate
         and up in one, interleaved, or apart; either all experts along one axis of ranks, or each expert for itself
Tinker   the same file and halves, under names of its own; experts along an axis, where one half may be all experts'
MLX-LM   adapters.safetensors: a [inputs, rank] and b [rank, outputs], under the canonical names

Everything is checked against the model's shapes when an adapter is opened; an adapter is used to its last tensor or
refused. Knows nothing of recipes: what becomes of merged values is the pipeline's.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from reprlib import repr as shown
from typing import Any, TypeVar

import numpy as np

from gptoss_mlx.files import sha256
from gptoss_mlx.model.bf16 import as_f32
from gptoss_mlx.model.checkpoint import Checkpoint, Shard
from gptoss_mlx.model.config import ModelConfig
from gptoss_mlx.untrusted import lexists, read_json

from .errors import ConvertError
from .sources import Blocks, Plain, expert_parts, plain_tensors

SETTINGS = "adapter_config.json"
DTYPES = ("F16", "BF16", "F32")
TOO_LARGE = 2.0**60  # as in a source
PIECE = 2**22  # values that are looked at in one go
Known = TypeVar("Known")


class AdapterError(ConvertError):
    """An adapter that cannot be merged into this model; the message names the tensor or the setting."""


@dataclass(frozen=True)
class LowRank:
    """scale * left @ right, which is added to a matrix [rows, columns].

    left [rows, rank] and right [rank, columns] are views of the file: float32, float16, or BF16 as its bits.
    """

    scale: float
    left: np.ndarray
    right: np.ndarray

    def product(self, rows: slice = slice(None)) -> np.ndarray:
        """float32 [rows, columns]."""
        return (self.scale * as_f32(self.left[rows])) @ as_f32(self.right)


@dataclass
class Change:
    """What becomes of one canonical weight."""

    added: dict[int, LowRank] = field(default_factory=dict)
    """To which expert what is added; a matrix is expert 0."""
    base: np.ndarray | None = None
    """Where the adapter has a matrix of its own to add to, a view of that."""


class Adapter:
    """A folder with an adapter that fits the model; `open` makes it."""

    def __init__(self, files: Iterable[Path], changes: Mapping[str, Change]):
        self._files, self._changes = tuple(files), changes

    @classmethod
    def open(cls, folder: Path, config: ModelConfig) -> Adapter:
        """Read and check an adapter for a model of this configuration; every byte is read, none is kept.

        Raises GptOssError for an adapter of another model, of another kind, or damaged.
        """
        weights, changes_of = _layout(folder)
        shard = Shard(folder / weights)
        tensors = Checkpoint(dict.fromkeys(shard.header.tensors, shard), folder)
        if not tensors.tensors:
            raise AdapterError(f"{folder / weights} has no tensors: nothing was trained")
        settings = _read_settings(folder / SETTINGS)
        try:
            return cls((folder / SETTINGS, folder / weights), changes_of(settings, tensors, config))
        except AdapterError as error:
            raise AdapterError(f"{folder}: {error}") from None

    @property
    def modules(self) -> tuple[str, ...]:
        """The canonical modules whose weights it changes."""
        return tuple(self._changes)

    @cached_property
    def sha256(self) -> dict[str, str]:
        """File name -> SHA-256, of the two files that make the adapter."""
        return {path.name: sha256(path) for path in self._files}

    def changes(self, item: Plain | Blocks) -> bool:
        return item.module in self._changes

    def merged(self, item: Plain | Blocks, rows: slice) -> np.ndarray:
        """A weight that it changes -> float32 [rows, columns], or [experts, rows, columns] of stacked experts.

        `rows` are of the weight's first axis: a matrix's rows, or experts. Twice the result is the most that is ever in
        memory. Raises AdapterError for values that are no weights.
        """
        change = self._changes[item.module]
        values = item.as_f32(rows) if change.base is None else as_f32(change.base[rows])
        with np.errstate(over="ignore", invalid="ignore"):
            if values.ndim == 2:
                values += change.added[0].product(rows)
            else:
                for expert, part in zip(range(item.shape[0])[rows], values, strict=True):
                    if expert in change.added:
                        part += change.added[expert].product()
        if not (values.max() < TOO_LARGE and values.min() > -TOO_LARGE):
            raise AdapterError(f"{item.module} with the adapter has values that are not a number, or not below 2^60")
        return values


def _read_settings(path: Path) -> dict[str, Any]:
    if not lexists(path):
        raise AdapterError(f"{path.parent} has no {SETTINGS}: an adapter without it cannot be scaled")
    settings = read_json(path, AdapterError)
    if not isinstance(settings, dict):
        raise AdapterError(f"{path} is not a JSON object")
    return settings


@dataclass(frozen=True)
class _Form:
    """How the two factors of one kind of weight are stored: what is along their axes, and the sides they become."""

    a: tuple[str, ...]
    b: tuple[str, ...]
    sides: Callable[[np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray]]
    """a, b, the number of experts -> left, right: views."""


PEFT_MATRIX = _Form(("rank", "columns"), ("rows", "rank"), lambda a, b, _: (b, a))
PEFT_EMBEDDING = _Form(("rank", "rows"), ("columns", "rank"), lambda a, b, _: (a.T, b.T))
# Along the axis of all ranks, A counts through an expert's ranks first, and B through the experts.
PEFT_EXPERTS = _Form(
    ("ranks", "columns"),
    ("rows", "ranks"),
    lambda a, b, experts: (
        b.reshape(len(b), -1, experts).transpose(2, 0, 1),
        a.reshape(experts, -1, a.shape[1]),
    ),
)
# PEFT 0.19.0 with transformers 5, and later PEFT with transformers 4, take the experts' inputs for their outputs.
PEFT_EXPERTS_SWAPPED = _Form(
    ("ranks", "rows"),
    ("columns", "ranks"),
    lambda a, b, experts: (
        a.reshape(experts, -1, a.shape[1]).transpose(0, 2, 1),
        b.reshape(len(b), -1, experts).transpose(2, 1, 0),
    ),
)
MLX_MATRIX = _Form(("columns", "rank"), ("rank", "rows"), lambda a, b, _: (b.T, a.T))
MLX_EMBEDDING = _Form(("rows", "rank"), ("rank", "columns"), lambda a, b, _: (a, b))
MLX_EXPERTS = _Form(("experts", "rank", "columns"), ("experts", "rows", "rank"), lambda a, b, _: (b, a))


@dataclass(frozen=True)
class _Pair:
    """The names of a weight's two tensors, and the path that they share."""

    path: str
    a: str
    b: str


def _pairs(names: Iterable[str], prefix: str, halves: tuple[tuple[str, str], ...]) -> list[_Pair]:
    """Every name is half of a pair `prefix` + path + one of `halves`, or the adapter is refused."""
    names = dict.fromkeys(names)
    pairs: dict[_Pair, None] = {}
    for name in names:
        both = next((both for both in halves if name.endswith(both)), None)
        if both is None or not name.startswith(prefix):
            raise AdapterError(f"{name!r} is no tensor of a LoRA adapter: only plain LoRA can be merged")
        stem = next(name.removesuffix(half) for half in both if name.endswith(half))
        pairs[_Pair(stem.removeprefix(prefix), *(stem + half for half in both))] = None
    for pair in pairs:
        for name, other in ((pair.a, pair.b), (pair.b, pair.a)):
            if name not in names:
                raise AdapterError(f"{other!r} lacks its other half, {name!r}: the adapter is incomplete")
    return list(pairs)


def _low_ranks(
    tensors: Checkpoint, pair: _Pair, form: _Form, shape: tuple[int, ...], rank: int, scale: float
) -> list[LowRank]:
    """What the two tensors, checked against the weight's shape, add to each expert, or to the one matrix."""
    sizes = _sizes(shape, rank)
    a, b = (
        _checked(tensors, name, tuple(sizes[axis] for axis in axes))
        for name, axes in ((pair.a, form.a), (pair.b, form.b))
    )
    left, right = form.sides(a, b, sizes["experts"])
    if left.ndim == 2:
        return [LowRank(scale, left, right)]
    return [LowRank(scale, *sides) for sides in zip(left, right, strict=True)]


def _sizes(shape: tuple[int, ...], rank: int) -> dict[str, int]:
    *experts, rows, columns = shape
    count = experts[0] if experts else 1
    return {"experts": count, "rows": rows, "columns": columns, "rank": rank, "ranks": rank * count}


def _checked(tensors: Checkpoint, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A view of the tensor, if it is finite numbers of this shape."""
    tensor = tensors.tensors[name]
    if tensor.dtype not in DTYPES:
        raise AdapterError(f"{name!r} is {tensor.dtype}, not one of {', '.join(DTYPES)}")
    if tensor.shape != shape:
        raise AdapterError(f"{name!r} is {list(tensor.shape)}, and model and settings ask for {list(shape)}")
    view = tensors.view(name)
    values = view.reshape(-1)
    if not all(_are_finite(values[start : start + PIECE]) for start in range(0, values.size, PIECE)):
        raise AdapterError(f"{name!r} has values that are not a number: the training failed, or the file is damaged")
    return view


def _are_finite(values: np.ndarray) -> bool:
    finite = (values & 0x7FFF) < 0x7F80 if values.dtype == np.uint16 else np.isfinite(values)
    return bool(finite.all())


def _published_weights(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Module of the published checkpoint -> shape of its weight: [rows, columns] or [experts, rows, columns]."""
    weights = {}
    for name, (_, shape) in plain_tensors(config).items():
        if len(shape) == 3:
            experts, inputs, outputs = shape
            weights[name] = (experts, outputs, inputs)
        elif len(shape) == 2 and name.endswith(".weight"):
            weights[name.removesuffix(".weight")] = shape
    return weights


def _canonical_weights(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The same with the experts' gate and up apart."""
    return {
        part: (*shape[:-2], len(range(shape[-2])[rows]), shape[-1])
        for module, shape in _published_weights(config).items()
        for part, rows in expert_parts(module)
    }


def _known(weights: Mapping[str, Known], path: str, name: str) -> Known:
    if path not in weights:
        raise AdapterError(f"{name!r} changes what this model does not have: it is an adapter of another model")
    return weights[path]


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -1e9 < value < 1e9:
        raise AdapterError(f"{name} is {shown(value)}, not a number")
    return float(value)


def _rank(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**31:
        raise AdapterError(f"{name} is {shown(value)}, not a rank")
    return value


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


def _peft_changes(settings: Mapping[str, Any], tensors: Checkpoint, config: ModelConfig) -> dict[str, Change]:
    tensors = _without_adapter_name(tensors)
    is_tinkers = any(mark in name for name in tensors.tensors for mark in TINKER_MARKS)
    if (kind := settings.get("peft_type", "LORA" if is_tinkers else None)) != "LORA":
        raise AdapterError(f"peft_type is {shown(kind)}, and only 'LORA' can be merged")
    for name, harmless in PEFT_HARMLESS.items():
        if (value := settings.get(name)) not in (None, False, [], {}, *harmless):
            raise AdapterError(f"{name} is {shown(value)}: only plain LoRA can be merged here; merge it with PEFT")
    if is_tinkers:
        return _tinker_changes(settings, tensors, config)
    bases = {module: name for module, name in PEFT_BASES.items() if name in tensors.tensors}
    factors = [name for name in tensors.tensors if name not in bases.values()]
    pairs = _pairs(factors, PEFT_PREFIX, PEFT_HALVES)
    weights = _published_weights(config)
    matrices = _peft_matrices(weights | _canonical_weights(config))
    stacks = _peft_stacks([pair for pair in pairs if STACK.fullmatch(pair.path)], tensors, weights)
    called = {pair.path: stacks[pair.path][0] if pair.path in stacks else pair.path for pair in pairs}
    scales = _peft_scales(settings, called.values())
    changes: dict[str, Change] = {}
    for pair in pairs:
        if pair.path in stacks:
            module, form = stacks[pair.path]
            shape, experts = weights[module], range(weights[module][0])
        else:
            module, expert, shape = _known(matrices, pair.path, pair.a)
            form = PEFT_EMBEDDING if pair.a.endswith(PEFT_HALVES[1]) else PEFT_MATRIX
            experts = [expert]
        low_ranks = _low_ranks(tensors, pair, form, shape, *scales[called[pair.path]])
        for part, rows in expert_parts(module):
            added = changes.setdefault(part, Change()).added
            for expert, low_rank in zip(experts, low_ranks, strict=True):
                if expert in added:
                    raise AdapterError(f"{pair.a!r} changes {module} a second time")
                added[expert] = replace(low_rank, left=low_rank.left[rows])
    for module, name in bases.items():
        if module not in changes:
            raise AdapterError(f"{name!r} is a whole weight without LoRA, and only LoRA can be merged")
        changes[module].base = _checked(tensors, name, weights[module])
    return changes


def _peft_matrices(weights: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[str, int, tuple[int, ...]]]:
    """Path of a linear layer in training -> the published or canonical module, which of its experts, and the shape.

    Where training in 4 bits needs linear layers, Unsloth makes one of each expert, in a list with a plural's name;
    others, and what vLLM takes, have them in the experts, gate and up apart.
    """
    matrices = {}
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
    pairs: list[_Pair], tensors: Checkpoint, weights: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[str, _Form]]:
    """Path of a pair -> the published module that it changes, and the form, which is one in the whole adapter."""

    def candidates(pair: _Pair, form: _Form) -> list[str]:
        found = tensors.tensors[pair.a].shape[-1:] + tensors.tensors[pair.b].shape[:1]
        experts = STACK.fullmatch(pair.path)[1]
        modules = (f"{experts}.gate_up_proj", f"{experts}.down_proj")
        sizes = {module: _sizes(_known(weights, module, pair.a), rank=0) for module in modules}
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
        """What PEFT calls it: the parameter, where it was given that."""
        is_given = any(f".{module}.weight".endswith(f".{target}") for target in parameters)
        return f"{module}.weight" if is_given else module

    keys = {module: key(module) for module in modules}
    ranks = _peft_setting(settings, "r", "rank_pattern", keys.values())
    alphas = _peft_setting(settings, "lora_alpha", "alpha_pattern", keys.values())
    scales = {}
    for module, key_ in keys.items():
        rank, alpha = _rank(ranks[key_], "r"), _number(alphas[key_], "lora_alpha")
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


# As PEFT matches. In a process of its own, because a regular expression can take forever, and can be stopped there.
MATCHING = r"""
import json, re, sys
patterns, keys = json.load(sys.stdin)
patterns = [re.compile(rf"(.*\.)?({pattern})$") for pattern in patterns]
print(json.dumps([next((n for n, pattern in enumerate(patterns) if pattern.match(key)), None) for key in keys]))
"""
PATIENCE = 20  # seconds; all keys of gpt-oss-120b take none


def _first_matches(patterns: list[str], keys: list[str], setting: str) -> list[int | None]:
    """For each key, which of the patterns matches it first."""
    text = json.dumps([patterns, keys])
    command = [sys.executable, "-I", "-c", MATCHING]
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        raise AdapterError(f"{setting} has a pattern that takes too long: {shown(patterns)}") from None
    if done.returncode:
        raise AdapterError(f"{setting} has a pattern that is no regular expression: {shown(patterns)}")
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


def _tinker_changes(settings: Mapping[str, Any], tensors: Checkpoint, config: ModelConfig) -> dict[str, Change]:
    """The rank is that of the tensors, which is not one for all; the scale is."""
    scale = _number(settings.get("lora_alpha"), "lora_alpha") / _rank(settings.get("r"), "r")
    weights = _canonical_weights(config)
    changes = {}
    for pair in _pairs(tensors.tensors, PEFT_PREFIX, PEFT_HALVES):
        module = pair.path
        for name, canonical in TINKER_NAMES.items():
            module = module.replace(name, canonical)
        *experts, rows, columns = _known(weights, module, pair.a)
        rank = tensors.tensors[pair.b].shape[-1]
        a, b = (
            _of_all(tensors, name, experts, sides)
            for name, sides in ((pair.a, (rank, columns)), (pair.b, (rows, rank)))
        )
        low_ranks = [LowRank(scale, *sides) for sides in (zip(b, a, strict=True) if experts else [(b, a)])]
        changes[module] = Change(dict(enumerate(low_ranks)))
    return changes


def _of_all(tensors: Checkpoint, name: str, experts: list[int], sides: tuple[int, ...]) -> np.ndarray:
    """A tensor of all experts, who may share a single one."""
    shared = bool(experts) and tensors.tensors[name].shape[:1] == (1,)
    return np.broadcast_to(_checked(tensors, name, (*([1] if shared else experts), *sides)), (*experts, *sides))


def _mlx_changes(settings: Mapping[str, Any], tensors: Checkpoint, config: ModelConfig) -> dict[str, Change]:
    if (kind := settings.get("fine_tune_type", "lora")) != "lora":
        raise AdapterError(f"fine_tune_type is {shown(kind)}: only 'lora' can be merged here; fuse it with mlx_lm.fuse")
    parameters = settings.get("lora_parameters")
    if not isinstance(parameters, dict):
        raise AdapterError(f"lora_parameters is {shown(parameters)}, not a JSON object with rank and scale")
    rank = _rank(parameters.get("rank"), "lora_parameters.rank")
    scale = _number(parameters.get("scale"), "lora_parameters.scale")
    weights = _canonical_weights(config)
    changes = {}
    for pair in _pairs(tensors.tensors, "", ((".lora_a", ".lora_b"),)):
        shape = _known(weights, pair.path, pair.a)
        matrix_form = MLX_EMBEDDING if pair.path == "model.embed_tokens" else MLX_MATRIX
        form = MLX_EXPERTS if len(shape) == 3 else matrix_form
        changes[pair.path] = Change(dict(enumerate(_low_ranks(tensors, pair, form, shape, rank, scale))))
    return changes


Changes = Callable[[Mapping[str, Any], Checkpoint, ModelConfig], dict[str, Change]]
LAYOUTS: Mapping[str, Changes] = {"adapter_model.safetensors": _peft_changes, "adapters.safetensors": _mlx_changes}


def _layout(folder: Path) -> tuple[str, Changes]:
    """The file that holds the tensors, and what reads them."""
    if not folder.is_dir():
        raise AdapterError(f"{folder} is not a folder")
    found = [name for name in LAYOUTS if (folder / name).is_file()]
    if len(found) > 1:
        raise AdapterError(f"{folder} holds two adapters, {' and '.join(found)}: leave one of them there")
    if not found and (folder / "adapter_model.bin").is_file():
        raise AdapterError(f"{folder}/adapter_model.bin may run code when it is read: save the adapter as safetensors")
    if not found:
        raise AdapterError(f"{folder} has neither {' nor '.join(LAYOUTS)}: not a folder with an adapter")
    return found[0], LAYOUTS[found[0]]
