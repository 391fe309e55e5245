"""The `config.json` of a gpt-oss model, with every field checked before anything is allocated.

Knows the published field names (hub layout), those that transformers writes instead, and MLX-LM's `quantization` entry;
knows nothing of weights or files other than `config.json` itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import GptOssError
from ..untrusted import lexists, read_json

if TYPE_CHECKING:
    from .safetensors import TensorInfo

LAYER_TYPES = ("sliding_attention", "full_attention")
AFFINE_GROUP_SIZES = (32, 64, 128)
AFFINE_BITS = (2, 3, 4, 5, 6, 8)
SWIGLU_ALPHA = 1.702
PUBLISHED_ROPE = {"rope_type": "yarn", "factor": 32.0}
# The modes that this program runs: their group sizes and bits, and MLX's defaults.
FORMS = {"affine": {(size, bits) for size in AFFINE_GROUP_SIZES for bits in AFFINE_BITS}, "mxfp4": {(32, 4)}}
USUAL_FORM = {"affine": (64, 4), "mxfp4": (32, 4)}
MIN_NUMBER, MAX_NUMBER = 1e-30, 1e30  # FP32 can hold these, and the products of a few


class ConfigError(GptOssError):
    """A configuration that is not possible for gpt-oss; the message names the field."""


@dataclass(frozen=True)
class Rope:
    """YaRN rotary embedding: `theta` over `original_context` positions, stretched `factor` times."""

    theta: float
    factor: float = 1.0
    original_context: int = 4096
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = False

    @property
    def scaling(self) -> dict[str, Any]:
        """The published `rope_scaling`."""
        if self.factor == 1:
            return {"rope_type": "default"}
        return {
            "rope_type": "yarn",
            "factor": self.factor,
            "beta_fast": self.beta_fast,
            "beta_slow": self.beta_slow,
            "truncate": self.truncate,
            "original_max_position_embeddings": self.original_context,
        }


@dataclass(frozen=True)
class Quantization:
    """The form of a stored weight matrix; `mode` is MLX's, "affine" or "mxfp4"."""

    group_size: int
    bits: int
    mode: str = "affine"


@dataclass(frozen=True)
class ModelConfig:
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    num_experts: int
    experts_per_token: int
    sliding_window: int
    layer_types: tuple[str, ...]
    rms_norm_eps: float
    rope: Rope
    max_context: int
    swiglu_limit: float
    quantization: Mapping[str, Quantization]
    """Module path -> the form of its weight; the entry "" is the default of modules that are not listed."""

    @classmethod
    def load(cls, folder: Path) -> ModelConfig:
        """Read `folder/config.json`. Raises ConfigError."""
        return cls.of_folder(folder, read_config(folder))

    @classmethod
    def of_folder(cls, folder: Path, data: Any) -> ModelConfig:
        """`from_dict` of the parsed `folder/config.json`, or of a translation of it; its errors name the file."""
        try:
            return cls.from_dict(data)
        except ConfigError as error:
            raise ConfigError(f"{folder / 'config.json'}: {error}") from None

    @classmethod
    def from_dict(cls, data: Any) -> ModelConfig:
        """Check the fields of a parsed `config.json`. Raises ConfigError naming the first field that is wrong."""
        fields = _Fields(data)
        model_type = data.get("model_type")
        if model_type != "gpt_oss":
            raise ConfigError(
                f"model_type is {model_type!r}, and this program runs 'gpt_oss' only, such as gpt-oss-20b"
            )
        num_layers = fields.integer("num_hidden_layers", default=36, maximum=1024)
        num_heads = fields.integer("num_attention_heads", default=64)
        num_kv_heads = fields.integer("num_key_value_heads", default=8)
        if num_heads % num_kv_heads:
            raise ConfigError(
                f"num_attention_heads {num_heads} is not a multiple of num_key_value_heads {num_kv_heads}"
            )
        head_dim = fields.integer("head_dim", default=64)
        if head_dim % 2:
            raise ConfigError(f"head_dim is {head_dim}, and rotary embedding needs an even number")
        num_experts = fields.integer("num_local_experts", default=data.get("num_experts", 128))
        experts_per_token = fields.integer("num_experts_per_tok", default=data.get("experts_per_token", 4))
        if experts_per_token > num_experts:
            raise ConfigError(f"num_experts_per_tok {experts_per_token} is more than num_local_experts {num_experts}")
        hidden_size, intermediate_size = (
            fields.integer(name, default=2880) for name in ("hidden_size", "intermediate_size")
        )
        for name, size in (("hidden_size", hidden_size), ("intermediate_size", intermediate_size)):
            if size % 32:
                raise ConfigError(f"{name} is {size}, not a multiple of the 32 values of an MXFP4 block")
        if (alpha := fields.number("swiglu_alpha", default=SWIGLU_ALPHA)) != SWIGLU_ALPHA:
            raise ConfigError(f"swiglu_alpha is {alpha}, and this program computes gpt-oss's {SWIGLU_ALPHA} only")
        return cls(
            num_layers=num_layers,
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            vocab_size=fields.integer("vocab_size", default=201088),
            num_experts=num_experts,
            experts_per_token=experts_per_token,
            sliding_window=fields.integer("sliding_window", default=128),
            layer_types=_layer_types(data.get("layer_types"), num_layers),
            rms_norm_eps=fields.number("rms_norm_eps", default=1e-5),
            rope=_rope(data, fields),
            max_context=fields.integer("max_position_embeddings", default=131072),
            swiglu_limit=fields.number("swiglu_limit", default=7.0),
            quantization=_quantization(data),
        )

    def published(self) -> dict[str, Any]:
        """Each field under its published name, as `from_dict` reads it: enough for MLX-LM too."""
        return {
            "model_type": "gpt_oss",
            "num_hidden_layers": self.num_layers,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab_size,
            "num_local_experts": self.num_experts,
            "num_experts_per_tok": self.experts_per_token,
            "sliding_window": self.sliding_window,
            "layer_types": list(self.layer_types),
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope.theta,
            "rope_scaling": self.rope.scaling,
            "max_position_embeddings": self.max_context,
            "swiglu_limit": self.swiglu_limit,
            "tie_word_embeddings": False,
        }

    def quantization_of(self, module: str) -> Quantization | None:
        """The form of `module`'s weight if it has scales; None in an unquantized folder."""
        return self.quantization.get(module) or self.quantization.get("")

    def stored_form(self, module: str, tensors: Mapping[str, TensorInfo]) -> Quantization | None:
        """The form of `module`'s weight in a folder with these tensors; None for a module without scales. As in MLX-LM,
        the shapes of a module that is not listed decide, whatever the default is."""
        weight, scales = (tensors.get(f"{module}.{part}") for part in ("weight", "scales"))
        usual = self.quantization_of(module)
        if scales is None or usual is None:
            return None
        if module in self.quantization or weight is None or not (weight.shape and scales.shape):
            return usual
        columns, mode = self._columns(module), "mxfp4" if scales.dtype == "U8" else "affine"
        form = columns // scales.shape[-1], 32 * weight.shape[-1] // columns
        return Quantization(*form, mode) if form in FORMS[mode] else usual

    def _columns(self, module: str) -> int:
        """Inputs of a linear map, or the width of the embedding."""
        if module.endswith(".o_proj"):
            return self.num_heads * self.head_dim
        return self.intermediate_size if module.endswith(".down_proj") else self.hidden_size


def read_config(folder: Path) -> Any:
    """The value of `folder/config.json`, not checked. Raises ConfigError."""
    path = folder / "config.json"
    if not lexists(path):
        raise ConfigError(f"{folder} has no config.json: not a model folder")
    return read_json(path, ConfigError)


class _Fields:
    """Typed access to a JSON object; every complaint names the field."""

    def __init__(self, data: Any, prefix: str = ""):
        if not isinstance(data, dict):
            raise ConfigError(f"{prefix.rstrip('.') or 'the file'} is not a JSON object")
        self.data, self.prefix = data, prefix

    def integer(self, name: str, *, default: Any = None, maximum: int = 2**31 - 1) -> int:
        value = self.data.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= maximum:
            raise ConfigError(f"{self.prefix}{name} is {value!r}, not a whole number from 1 to {maximum}")
        return value

    def number(self, name: str, *, default: float | None = None) -> float:
        value = self.data.get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not MIN_NUMBER <= value <= MAX_NUMBER:
            raise ConfigError(f"{self.prefix}{name} is {value!r}, not a number from {MIN_NUMBER:g} to {MAX_NUMBER:g}")
        return float(value)


def _layer_types(value: Any, num_layers: int) -> tuple[str, ...]:
    if value is None:
        return tuple(LAYER_TYPES[i % 2] for i in range(num_layers))
    if not isinstance(value, list) or len(value) != num_layers:
        raise ConfigError(f"layer_types does not have num_hidden_layers = {num_layers} entries")
    for i, kind in enumerate(value):
        if kind not in LAYER_TYPES:
            raise ConfigError(f"layer_types[{i}] is {kind!r}, not one of {', '.join(LAYER_TYPES)}")
    return tuple(value)


def _rope(data: dict, fields: _Fields) -> Rope:
    """From `rope_scaling`, or transformers 5's `rope_parameters`; without either, gpt-oss's own, as in transformers."""
    scaling = next((data[name] for name in ("rope_scaling", "rope_parameters") if data.get(name)), PUBLISHED_ROPE)
    scaling = _without_layer_types(_Fields(scaling, "rope_scaling.").data)
    nested = _Fields({name: value for name, value in scaling.items() if value is not None}, "rope_scaling.")
    theta = (nested if "rope_theta" in nested.data else fields).number("rope_theta", default=150000.0)
    if (rotated := nested.number("partial_rotary_factor", default=1.0)) != 1:
        raise ConfigError(f"rope_scaling.partial_rotary_factor is {rotated}, and gpt-oss rotates whole heads")
    kind = nested.data.get("rope_type", nested.data.get("type"))
    if kind == "default":
        return Rope(theta=theta)
    if kind != "yarn":
        raise ConfigError(f"rope_scaling.rope_type is {kind!r}, not 'yarn'")
    truncate = nested.data.get("truncate", False)
    if not isinstance(truncate, bool):
        raise ConfigError(f"rope_scaling.truncate is {truncate!r}, not true or false")
    beta_fast, beta_slow = nested.number("beta_fast", default=32.0), nested.number("beta_slow", default=1.0)
    if beta_fast <= beta_slow:
        raise ConfigError(f"rope_scaling.beta_fast {beta_fast} is not above beta_slow {beta_slow}")
    if (factor := nested.number("factor")) < 1:
        raise ConfigError(f"rope_scaling.factor is {factor}, less than 1")
    if theta <= 1:
        raise ConfigError(f"rope_theta is {theta}, not above 1")
    _check_attention_factor(nested, factor)
    original = nested.integer("original_max_position_embeddings", default=data.get("initial_context_length", 4096))
    return Rope(theta, factor, original, beta_fast, beta_slow, truncate)


def _without_layer_types(scaling: dict) -> dict:
    """transformers 5 can write an entry for each type of layer; the types of gpt-oss share one."""
    each = [scaling[kind] for kind in LAYER_TYPES if kind in scaling]
    if not each:
        return scaling
    if any(entry != each[0] for entry in each) or not isinstance(each[0], dict):
        raise ConfigError("rope_scaling differs between the types of layers, and those of gpt-oss share one")
    return each[0]


def _check_attention_factor(scaling: _Fields, factor: float) -> None:
    """The attention scaling can be given, and must then equal YaRN's default. Raises ConfigError."""
    usual = 0.1 * math.log(factor) + 1
    given = scaling.number("attention_factor", default=usual)
    scales = "mscale", "mscale_all_dim"
    if "attention_factor" not in scaling.data and all(scaling.data.get(name) for name in scales):
        over, under = (0.1 * scaling.number(name) * math.log(factor) + 1 for name in scales)
        given = over / under
    if not math.isclose(given, usual, rel_tol=1e-4):
        raise ConfigError(f"rope_scaling asks for an attention factor of {given:g}, and gpt-oss has {usual:g}")


def _quantization(data: dict) -> dict[str, Quantization]:
    """MLX-LM's entry: group_size, bits and mode at the top level, and overrides under module paths."""
    value = data.get("quantization")
    if value is None:
        value = _in_quantization_config(data.get("quantization_config"))
    if value is None:
        return {}
    top = _Fields(value, "quantization.").data
    entries = {name: entry for name, entry in top.items() if isinstance(entry, dict)}
    stored = {"": _quantized(top, "quantization.")} if top.keys() & {"group_size", "bits", "mode"} else {}
    return stored | {name: _quantized(entry, f"quantization.{name}.") for name, entry in entries.items()}


def _in_quantization_config(value: Any) -> dict | None:
    """The same entry, of which MLX-LM writes a copy here; or its meaning in published checkpoints."""
    if not isinstance(value, dict):
        return None
    if value.get("quant_method") == "mxfp4":
        return {"mode": "mxfp4"}
    return value if {"group_size", "bits"} <= value.keys() and "quant_method" not in value else None


def _quantized(entry: dict, prefix: str) -> Quantization:
    """An entry's form; a field that is absent or null has the default of the mode. Raises ConfigError."""
    given = {name: value for name, value in entry.items() if value is not None}
    mode = given.get("mode", "affine")
    if not isinstance(mode, str) or mode not in FORMS:
        raise ConfigError(f"{prefix}mode is {mode!r}, not one of {', '.join(FORMS)}, which this program runs")
    fields = _Fields(given, prefix)
    group_size, bits = (
        fields.integer(name, default=usual)
        for name, usual in zip(("group_size", "bits"), USUAL_FORM[mode], strict=True)
    )
    if (group_size, bits) not in FORMS[mode]:
        raise ConfigError(f"{prefix.rstrip('.')}: {mode} has no form with {bits} bits in groups of {group_size}")
    return Quantization(group_size, bits, mode)
