"""A path that is given as a model -> the folder that holds it; or an error that says what is there, and what to do.

Looks at the names of files, config.json and the headers, never at weights. Every command asks here, so that all give
the same message. Leaves the conversion of a layout's tensors to the converter.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ..errors import GptOssError
from ..files import read_text
from ..untrusted import os_error_text
from .checkpoint import INDEX, Checkpoint
from .config import ModelConfig, read_config
from .safetensors import CheckpointError, TensorInfo

FLOATS = ("BF16", "F16", "F32", "F64")
CONVERT = "convert a checkpoint in safetensors, such as `gptoss-mlx convert openai/gpt-oss-20b DEST`"


@dataclass(frozen=True)
class Other:
    """Something else than a gpt-oss checkpoint, by the names of its files; the name of a folder ends with a slash."""

    names: tuple[str, ...]
    """Patterns, one of which has to match."""
    what: str
    step: str
    """What the user can do."""


ADAPTER = Other(
    ("adapter_config.json", "adapter_model.*", "adapters.safetensors"),
    "an adapter, not a whole model",
    "merge it into the model that it was trained on: `gptoss-mlx convert MODEL DEST --adapter DIR`",
)
# The first match is reported.
OTHERS = (
    ADAPTER,
    Other(("*.gguf",), "a GGUF model, which llama.cpp runs", CONVERT),
    Other(
        ("*.distcp", "global_step*/", "pytorch_model_fsdp*/", "zero_to_fp32.py", "*_optim_states.pt"),
        "the sharded state of a training run (DeepSpeed or FSDP)",
        "merge it into safetensors first, with zero_to_fp32.py or `accelerate merge-weights`",
    ),
    Other(("model.bin",), "model.bin, the format of OpenAI's Metal program", CONVERT),
    Other(
        ("*.bin", "*.pth", "*.pt", "*.ckpt", "*.pkl"),
        "weights in PyTorch's format, which may run code when they are read",
        "save the model in safetensors, as save_pretrained of transformers does",
    ),
    Other(("*.npz",), "weights in NumPy's format, as in MLX's first examples", CONVERT),
    Other(("*.onnx", "*.onnx_data", "onnx/"), "an ONNX model", CONVERT),
    Other(("*.h5", "saved_model.pb", "*.ckpt.index"), "a TensorFlow model", CONVERT),
    Other(("*.msgpack",), "a Flax model", CONVERT),
    Other(("*.mlpackage/", "*.mlmodelc/", "*.mlmodel"), "a Core ML model", CONVERT),
    Other(("openvino_model.xml", "*.engine", "*.plan"), "a model compiled for OpenVINO or TensorRT", CONVERT),
    Other(("*.tflite", "*.litertlm", "*.task"), "a LiteRT model", CONVERT),
    Other(("manifests/", "modelfile", "sha256-*"), "models of Ollama's, in GGUF", CONVERT),
    Other(
        ("*.zip", "*.tar", "*.tar.*", "*.tgz", "*.7z", "*.rar", "*.zst"),
        "packed files",
        "unpack them, and give the folder that has config.json",
    ),
    Other(("*.incomplete", "*.part", "*.crdownload", "*.aria2"), "an unfinished download", "finish it first"),
    Other(
        ("config.json", "model*.json"),
        "a model's settings without its weights",
        "finish the download, or `gptoss-mlx convert openai/gpt-oss-20b DEST`",
    ),
    Other(
        ("tokenizer*", "*.tiktoken", "special_tokens_map.json", "chat_template*", "vocab.json", "merges.txt"),
        "a tokenizer without a model",
        "give the folder that also has config.json and the weights",
    ),
)


def model_folder(path: Path) -> Path:
    """The folder with the model's files: `path`, or the revision in it if it is the hub's cache of a repository.

    Raises GptOssError for anything else, saying what it is and what to do.
    """
    if not path.is_dir():
        raise GptOssError(_of_file(path))
    try:
        names = [name + "/" * os.path.isdir(path / name) for name in os.listdir(path)]
    except OSError as error:
        raise GptOssError(f"cannot read {path}: {os_error_text(error)}") from None
    if has_weights(names):
        return path
    if "snapshots/" in names:
        return model_folder(_snapshot(path))
    raise GptOssError(_inside(path, names) or without_weights(path, names))


def without_weights(where: Path | str, names: Iterable[str]) -> str:
    """The message for a folder, or a repository, that has files of these names and no weights in safetensors."""
    names = [name for name in names if not name.startswith(".")]
    if not names:
        return f"{where} is empty, where a model has config.json and weights: {CONVERT}"
    if other := _other(names):
        return f"{where} holds {other.what}: {other.step}"
    return f"{where} has no config.json, no tokenizer.json and no weights in safetensors: it holds no model"


def has_weights(names: Collection[str]) -> bool:
    weights = (name for name in names if name.endswith(".safetensors") and not name.startswith("."))
    return INDEX in names or any(not _fits(ADAPTER, name) for name in weights)


def _fits(other: Other, name: str) -> bool:
    return any(fnmatchcase(name.lower(), pattern) for pattern in other.names)


def _other(names: Collection[str]) -> Other | None:
    return next((other for other in OTHERS if any(_fits(other, name) for name in names)), None)


def _of_file(path: Path) -> str:
    if not os.path.lexists(path):
        return f"{path} is not a folder: convert a checkpoint first, or check the path"
    is_part = path.suffix in (".safetensors", ".json") and not _fits(ADAPTER, path.name)
    if not is_part and (other := _other([path.name])):
        return f"{path} holds {other.what}: {other.step}"
    return f"{path} is a file: give the folder that holds config.json and the weights" + f", {path.parent}" * is_part


def _quoted(path: Path) -> str:
    """A path as it is typed in a shell."""
    return shlex.quote(str(path))


def _snapshot(repository: Path) -> Path:
    """The revision that was downloaded: the one that is called main, or the only one."""
    snapshots = repository / "snapshots"
    here = sorted(entry.name for entry in snapshots.iterdir() if entry.is_dir())
    main = read_text(repository / "refs" / "main")
    if main in here:
        return snapshots / main
    if len(here) == 1:
        return snapshots / here[0]
    if not here:
        raise GptOssError(f"{repository} holds an unfinished download: {CONVERT}")
    raise GptOssError(f"{repository} holds {len(here)} revisions: give one of them, such as {snapshots / here[0]}")


def _inside(path: Path, names: Iterable[str]) -> str | None:
    """The message if a folder in this one should have been given: the newest checkpoint of a training run, `original/`,
    one model of several."""
    folders = sorted((path / name for name in names if name.endswith("/")), key=_likely)
    if models := [folder for folder in folders if _holds(folder, "config.json", "snapshots")]:
        whole = "is the folder of a training run" if CHECKPOINT.fullmatch(models[-1].name) else "is not a model itself"
        return f"{path} {whole}, without config.json and weights of its own: give {models[-1]}"
    if adapters := [folder for folder in folders if _holds(folder, ADAPTER.names[0])]:
        step = f"`gptoss-mlx convert MODEL DEST --adapter {_quoted(adapters[-1])}`"
        return f"{path} holds adapters, not whole models: merge one into the model that it was trained on: {step}"
    return None


CHECKPOINT = re.compile(r"checkpoint-(\d{1,18})")


def _likely(folder: Path) -> tuple[bool, int, str]:
    """A sort key, the likeliest folder last: the newest checkpoint, a gpt-oss among other models."""
    number = CHECKPOINT.fullmatch(folder.name)
    return "gpt-oss" in folder.name.lower(), int(number[1]) if number else -1, folder.name


def _holds(folder: Path, *names: str) -> bool:
    return any((folder / name).exists() for name in names)


# quantization_config.quant_method of config.json -> its usual name, if that differs.
METHODS = {
    "gptq": "GPTQ",
    "awq": "AWQ",
    "fp8": "FP8",
    "fbgemm_fp8": "FBGEMM FP8",
    "modelopt": "NVIDIA's ModelOpt",
    "modelopt_fp4": "NVIDIA's ModelOpt, NVFP4",
    "quark": "AMD Quark",
    "hqq": "HQQ",
    "auto-round": "AutoRound",
    "exl2": "ExLlamaV2",
    "exl3": "ExLlamaV3",
    "eetq": "EETQ",
    "aqlm": "AQLM",
}
OURS = "mxfp4"
# A part of a tensor's name that only one method writes -> the method, the first that is found.
MARKS = {
    ".quant_state.bitsandbytes__": "bitsandbytes",
    ".absmax": "bitsandbytes",
    ".SCB": "bitsandbytes",
    ".g_idx": "GPTQ",
    ".qweight": "AWQ or GPTQ",
    ".qzeros": "AWQ or GPTQ",
    ".weight_packed": "compressed-tensors",
    ".weight_scale_2": "NVFP4 (NVIDIA's ModelOpt)",
    ".weight_scale_inv": "FP8",
    ".trellis": "ExLlamaV3",
    ".q_invperm": "ExLlamaV2",
    ".W_q": "HQQ",
    ".input_scale": "FP8 (NVIDIA's ModelOpt)",
}
FLOATS_OF_8_BITS = ("F8_E4M3", "F8_E5M2")


def check_form(where: Path | str, config: Any, tensors: Mapping[str, TensorInfo]) -> None:
    """Raise CheckpointError for weights that neither the converter nor the engine reads: in another quantization, or
    with an adapter that was not merged.

    `config` is the value of config.json. Another architecture passes here: `config` reports it.
    """
    if not _is_gpt_oss(config):
        return
    if factor := next((tensor.name for tensor in tensors.values() if ".lora_" in tensor.name), None):
        raise CheckpointError(
            f"{where} has an adapter that was not merged into its weights ({factor!r}): merge it with the program that"
            " trained it, such as merge_and_unload of PEFT, and save it again"
        )
    if method := _method(config, tensors):
        raise CheckpointError(
            f"{where} is quantized with {method}, which gptoss-mlx does not read: convert the checkpoint from which it"
            " was made, in BF16 or in the published MXFP4 (such as openai/gpt-oss-20b)"
        )


def _is_gpt_oss(config: Any) -> bool:
    """An `original/` config.json names no type."""
    return isinstance(config, dict) and config.get("model_type", "gpt_oss") == "gpt_oss"


def _method(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> str | None:
    """The name of another quantization; None for gpt-oss's own forms. The one in config.json counts only if there are
    tensors other than floats: it stays after a merge, which leaves plain weights."""
    by_name = next((MARKS[mark] for mark in MARKS if any(mark in name for name in tensors)), None)
    dtypes = {tensor.dtype for tensor in tensors.values()}
    if dtypes <= set(FLOATS) and by_name is None:
        return None
    if "quantization" not in config and (named := _named(config)):
        return named
    return by_name or next((f"FP8 ({dtype})" for dtype in FLOATS_OF_8_BITS if dtype in dtypes), None)


def _named(config: Mapping[str, Any]) -> str | None:
    """The quantization in config.json, with its variant if there is one."""
    settings = config.get("quantization_config") or config.get("compression_config")
    if not isinstance(settings, dict):
        return None
    method = settings.get("quant_method")
    if not isinstance(method, str) or method.lower() == OURS:
        return None
    detail = settings.get("quant_algo") or settings.get("format")
    name = METHODS.get(method.lower(), method)
    return f"{name} ({detail})" if isinstance(detail, str) else name


# A part of a tensor's name that occurs only in a layout that needs conversion -> the name of the layout.
UNCONVERTED = {
    ".gate_up_proj_blocks": "a published checkpoint",
    ".mlp1_weight": "a checkpoint in OpenAI's original layout",
    ".experts.gate_up_proj": "a checkpoint whose experts are not quantized",
    ".experts.down_projs.": "a checkpoint with layers for each expert",
    ".experts.0.": "a checkpoint with layers for each expert",
}


def open_converted(folder: Path) -> tuple[ModelConfig, Checkpoint]:
    """The configuration and the tensors of a converted folder. Raises GptOssError; for a checkpoint that was not
    converted, the message has the command for that."""
    data, checkpoint = read_config(folder), Checkpoint.open(folder)
    check_form(folder, data, checkpoint.tensors)
    if _is_gpt_oss(data) and (what := _unconverted(checkpoint.tensors)):
        raise CheckpointError(f"{folder} is {what}: run `gptoss-mlx convert {_quoted(folder)} DEST` first")
    return ModelConfig.of_folder(folder, data), checkpoint


def _unconverted(tensors: Iterable[str]) -> str | None:
    return next((what for mark, what in UNCONVERTED.items() if any(mark in name for name in tensors)), None)
