"""A folder with a LoRA adapter -> `lora.Adapter`, which fits the model; MLX-LM's layout is read here.

The layouts are distinguished by the file that holds the tensors:

PEFT, Tinker  adapter_model.safetensors: see `peft_adapters`
MLX-LM        adapters.safetensors: a [inputs, rank] and b [rank, outputs], under the canonical names

Everything is checked against the model's shapes; an adapter is used to its last tensor or refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from reprlib import repr as shown
from typing import Any

from gptoss_mlx.model.checkpoint import Checkpoint, Shard
from gptoss_mlx.model.config import ModelConfig
from gptoss_mlx.untrusted import lexists, read_json

from .adapter_tensors import FactorForm, canonical_shapes, known_weight, low_ranks_of, number_of, pairs_of, rank_of
from .lora import Adapter, AdapterError, WeightDelta
from .peft_adapters import peft_deltas

SETTINGS = "adapter_config.json"

MLX_MATRIX = FactorForm(("columns", "rank"), ("rank", "rows"), lambda a, b, _: (b.T, a.T))
MLX_EMBEDDING = FactorForm(("rows", "rank"), ("rank", "columns"), lambda a, b, _: (a, b))
MLX_EXPERTS = FactorForm(("experts", "rank", "columns"), ("experts", "rows", "rank"), lambda a, b, _: (b, a))


def open_adapter(folder: Path, config: ModelConfig) -> Adapter:
    """Read and check an adapter for a model of this configuration; every byte is read, none is kept.

    Raises GptOssError for an adapter of another model, of another kind, or damaged.
    """
    weights, deltas_of = _layout(folder)
    shard = Shard(folder / weights)
    tensors = Checkpoint(dict.fromkeys(shard.header.tensors, shard), folder)
    if not tensors.tensors:
        raise AdapterError(f"{folder / weights} has no tensors: nothing was trained")
    settings = _read_settings(folder / SETTINGS)
    try:
        return Adapter((folder / SETTINGS, folder / weights), deltas_of(settings, tensors, config))
    except AdapterError as error:
        raise AdapterError(f"{folder}: {error}") from None


def _read_settings(path: Path) -> dict[str, Any]:
    if not lexists(path):
        raise AdapterError(f"{path.parent} has no {SETTINGS}: an adapter without it cannot be scaled")
    settings = read_json(path, AdapterError)
    if not isinstance(settings, dict):
        raise AdapterError(f"{path} is not a JSON object")
    return settings


def _mlx_deltas(settings: Mapping[str, Any], tensors: Checkpoint, config: ModelConfig) -> dict[str, WeightDelta]:
    if (kind := settings.get("fine_tune_type", "lora")) != "lora":
        raise AdapterError(f"fine_tune_type is {shown(kind)}: only 'lora' can be merged here; fuse it with mlx_lm.fuse")
    parameters = settings.get("lora_parameters")
    if not isinstance(parameters, dict):
        raise AdapterError(f"lora_parameters is {shown(parameters)}, not a JSON object with rank and scale")
    rank = rank_of(parameters.get("rank"), "lora_parameters.rank")
    scale = number_of(parameters.get("scale"), "lora_parameters.scale")
    weights = canonical_shapes(config)
    deltas = {}
    for pair in pairs_of(tensors.tensors, "", ((".lora_a", ".lora_b"),)):
        shape = known_weight(weights, pair.path, pair.a)
        matrix_form = MLX_EMBEDDING if pair.path == "model.embed_tokens" else MLX_MATRIX
        form = MLX_EXPERTS if len(shape) == 3 else matrix_form
        deltas[pair.path] = WeightDelta(dict(enumerate(low_ranks_of(tensors, pair, form, shape, rank, scale))))
    return deltas


ReadDeltas = Callable[[Mapping[str, Any], Checkpoint, ModelConfig], dict[str, WeightDelta]]
LAYOUTS: Mapping[str, ReadDeltas] = {"adapter_model.safetensors": peft_deltas, "adapters.safetensors": _mlx_deltas}


def _layout(folder: Path) -> tuple[str, ReadDeltas]:
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
