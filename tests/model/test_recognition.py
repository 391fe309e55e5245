"""What is no converted model is named by every command that is given it, in one line that says what to do instead."""

import json
from pathlib import Path

import numpy as np
import pytest

from checkpoints import config_of, tensors_of, write_checkpoint, write_safetensors, write_tokenizer
from convert.test_sources import bf16_folder, original_folder
from gptoss_convert import convert
from gptoss_convert.inspection import Subject, inspect
from gptoss_mlx import load
from gptoss_mlx.bench import roofline
from gptoss_mlx.model.model_store import resolve
from gptoss_mlx.model.recognition import open_converted

CONFIG = config_of(num_hidden_layers=1)
TENSORS = tensors_of(CONFIG)
RUNNERS = ("chat", "generate", "bench", "eval", "plan", "verify")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("model")
    write_checkpoint(root / "source", CONFIG)
    convert(root / "source", root / "model")
    return root / "model"


@pytest.fixture
def complaint(run_here, tmp_path, model):
    """The one line with which a command that is given a model refuses it."""

    def complaint(command: str, given: Path) -> str:
        words = {
            "convert": ["convert", given, tmp_path / "made"],
            "compare": ["compare", given, model],
            "compare with": ["compare", model.parent / "source", given],
            "generate": ["generate", given, "-p", "x", "--max-tokens", "1"],
        }.get(command, [command, given])
        done = run_here(*words)
        assert done.returncode == 1, (command, done.stderr)
        (line,) = [line for line in done.stderr.splitlines() if not line.startswith("verify ")]
        assert line.startswith("error: ")
        assert not (tmp_path / "made").exists()
        return line

    return complaint


ALL = ("convert", "inspect", "compare", "compare with", *RUNNERS)
TWO = ("convert", "plan")  # the two ways in, of sources and of models; that the others go by them, a few cases show

# Folders: the names of files, which need hold nothing -> what is said.
GIVEN = {
    "GGUF": (["gpt-oss-20b-Q4_K_M.gguf", "config.json"], "GGUF model", "gptoss-mlx convert openai/gpt-oss-20b"),
    "a PEFT adapter": (["adapter_config.json", "adapter_model.safetensors"], "an adapter", "--adapter"),
    "an adapter of MLX-LM": (["adapters.safetensors", "adapter_config.json"], "an adapter", "--adapter"),
    "an adapter with its tokenizer": (["adapter_config.json", "adapter_model.bin", "tokenizer.json"], "an adapter"),
    "metal": (["model.bin"], "OpenAI's Metal program", "safetensors"),
    "a pickle": (["pytorch_model.bin", "config.json"], "PyTorch's format", "safetensors"),
    "shards of a pickle": (["pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"], "PyTorch's format"),
    "pth": (["consolidated.00.pth", "params.json"], "PyTorch's format", "safetensors"),
    "FSDP": (["pytorch_model_fsdp_0/__0_0.distcp", "trainer_state.json"], "FSDP", "accelerate merge-weights"),
    "DeepSpeed": (["global_step60/mp_rank_00_model_states.pt", "zero_to_fp32.py"], "DeepSpeed", "zero_to_fp32.py"),
    "NumPy's": (["weights.npz", "config.json"], "NumPy's format"),
    "ONNX": (["model.onnx", "config.json"], "ONNX"),
    "TensorFlow": (["tf_model.h5", "config.json"], "TensorFlow"),
    "Flax": (["flax_model.msgpack"], "Flax"),
    "Core ML": (["model.mlpackage/Manifest.json"], "Core ML"),
    "Ollama": (["manifests/registry", "blobs/sha256-0"], "Ollama"),
    "a file for Ollama": (["Modelfile"], "Ollama"),
    "an archive": (["model.zip"], "unpack"),
    "a part of a download": (["model.safetensors.incomplete"], "unfinished download"),
    "no weights": (["config.json", "tokenizer.json"], "without its weights", "finish the download"),
    "a tokenizer": (["tokenizer.json", "tokenizer_config.json"], "a tokenizer without a model"),
    "nothing": ([], "is empty"),
    "hidden files": ([".DS_Store"], "is empty"),
    "texts": (["README.md", "notes.txt"], "holds no model", "config.json"),
    "a training run": (
        ["checkpoint-60/config.json", "checkpoint-400/config.json", "README.md"],
        "training run",
        "given/checkpoint-400",
    ),
    "a training run of an adapter": (
        ["checkpoint-60/adapter_config.json", "checkpoint-60/adapter_model.safetensors"],
        "--adapter",
        "given/checkpoint-60",
    ),
    "a folder with original/": (["original/config.json", "original/model.safetensors"], "given/original"),
    "a folder of models": (["gpt-oss-20b-q4/config.json", "llama/config.json"], "given/gpt-oss-20b-q4"),
    "the cache of the hub": (
        ["models--openai--gpt-oss-20b/snapshots/0/config.json", "models--z--z/snapshots/1/config.json"],
        "given/models--openai--gpt-oss-20b",
    ),
    "a download in the hub's cache that has hardly begun": (["snapshots/", "refs/main"], "unfinished download"),
    "two revisions in the hub's cache": (["snapshots/a/config.json", "snapshots/b/config.json"], "2 revisions"),
}


def test_nothing_is_measured_for_what_is_refused(complaint, monkeypatch, tmp_path):
    monkeypatch.setattr(roofline, "measured_bandwidth", None)
    complaint("plan", tmp_path / "nothing")


@pytest.mark.parametrize("case", GIVEN)
def test_folders_that_hold_something_else(complaint, tmp_path, case):
    names, *parts = GIVEN[case]
    given = tmp_path / "given"
    given.mkdir()
    for name in names:
        (given / name).parent.mkdir(parents=True, exist_ok=True)
        (given / name).mkdir() if name.endswith("/") else (given / name).write_bytes(b"x")
    said = {complaint(command, given) for command in (ALL if case in ("GGUF", "a training run") else TWO)}
    assert len(said) == 1
    (line,) = said
    assert str(given) in line
    for part in parts:
        assert part in line


FILES = {
    "model.gguf": "GGUF",
    "model-00001-of-00003.safetensors": "give the folder that holds config.json",
    "adapter_model.safetensors": "--adapter",
    "tokenizer.json": "give the folder that holds config.json",
    "config.json": "give the folder that holds config.json",
    "model.zip": "unpack",
    "model.tar.gz": "unpack",
    "pytorch_model.bin": "PyTorch",
    "model.pth": "PyTorch",
    "model.onnx": "ONNX",
    "sha256-b112e727c6f18875636c56a779790a590d705aec9e1c0eb5a97d51fc2a778583": "GGUF",
    "notes": "is a file",
}


@pytest.mark.parametrize("name", FILES)
def test_files(complaint, tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    said = {complaint(command, tmp_path / name) for command in (ALL if name == "model.gguf" else TWO)}
    assert len(said) == 1
    (line,) = said
    assert str(tmp_path / name) in line
    assert FILES[name] in line


def as_it_is_downloaded(model: Path, folder: Path) -> Path:
    """As the hub's library keeps a repository."""
    (folder / "snapshots").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("c0ffee")
    (folder / "snapshots" / "c0ffee").symlink_to(model, target_is_directory=True)
    return folder


def test_a_repository_in_the_cache_of_the_hub_is_its_revision(tmp_path, model):
    folder = as_it_is_downloaded(model, tmp_path / "models--somebody--gpt-oss")
    assert resolve(str(folder)) == folder / "snapshots" / "c0ffee"
    (folder / "snapshots" / "other").mkdir()
    assert resolve(str(folder)) == folder / "snapshots" / "c0ffee"
    assert load(folder).config.num_layers == 1
    source = as_it_is_downloaded(model.parent / "source", tmp_path / "models--openai--gpt-oss")
    convert(source, tmp_path / "made")
    open_converted(tmp_path / "made")


def test_files_beside_a_model_do_not_hide_it(tmp_path, model):
    (tmp_path / "made").mkdir()
    for path in model.iterdir():
        (tmp_path / "made" / path.name).symlink_to(path)
    for name in ("model.gguf", "pytorch_model.bin", "adapter_config.json", "adapters.safetensors"):
        (tmp_path / "made" / name).write_bytes(b"x")
    (tmp_path / "made" / "checkpoint-60").mkdir()
    (tmp_path / "made" / "loop").symlink_to("loop")
    assert load(resolve(str(tmp_path / "made"))).config.num_layers == 1


UNCONVERTED = {
    "published": lambda folder: write_checkpoint(folder, CONFIG),
    "original": original_folder,
    "BF16": bf16_folder,
}


@pytest.mark.parametrize("layout", UNCONVERTED)
def test_a_checkpoint_that_was_not_converted(complaint, tmp_path, layout):
    folder = UNCONVERTED[layout](tmp_path / "it's")
    said = {complaint(command, folder) for command in (*RUNNERS, "compare with")}
    assert len(said) == 1
    assert f"run `gptoss-mlx convert '{folder}' DEST` first".replace("it's", "it'\"'\"'s") in said.pop()


STARTS = {
    b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 13761300984\n": "`git lfs pull`",
    b"GGUF\x03\0\0\0\0\0\0\0": "a GGUF file",
    b"PK\x03\x04\0\0\x08\x08\0\0": "PyTorch",
    b"<!DOCTYPE html><html>": "a web page",
    b"<!doctype html><html>": "a web page",
}


@pytest.mark.parametrize("start", STARTS)
def test_shards_that_are_something_else(complaint, tmp_path, start):
    folder = write_checkpoint(tmp_path / "given", CONFIG)
    shard = min(folder.glob("*.safetensors"))
    shard.write_bytes(start)
    for command in TWO:
        line = complaint(command, folder)
        assert str(shard) in line
        assert STARTS[start] in line


def test_a_model_that_was_saved_with_its_adapter_beside_the_weights(complaint, tmp_path):
    folder = bf16_folder(tmp_path / "given")
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {f"{module}.{name}.weight": TENSORS["lm_head.weight"] for name in ("base_layer", "lora_A.default")}
    write_safetensors(folder / "model.safetensors", tensors)
    for command in TWO:
        line = complaint(command, folder)
        assert "not merged" in line
        assert f"{module}.lora_A" in line


def test_another_architecture(complaint, tmp_path):
    folder = write_checkpoint(tmp_path / "given", CONFIG)
    settings = json.loads((folder / "config.json").read_text())
    for more in ({}, {"quantization_config": {"quant_method": "gptq"}}):
        (folder / "config.json").write_text(json.dumps(settings | {"model_type": "llama"} | more))
        for command in ALL:
            line = complaint(command, folder)
            assert "'llama'" in line
            assert "gpt-oss" in line


def quantized(folder: Path, settings: dict | None, change) -> Path:
    """A checkpoint whose linear layers `change` replaces: name, weight -> tensors; experts are linear layers too."""
    folder.mkdir()
    tensors = {}
    for name, (array, dtype) in TENSORS.items():
        if name.endswith("_proj.weight"):
            tensors |= change(name.removesuffix(".weight"), array)
        elif name.endswith("_proj_blocks"):
            for expert in range(CONFIG["num_local_experts"]):
                module = name.replace("experts.", f"experts.{expert}.").removesuffix("_blocks")
                tensors |= change(module, np.zeros((array.shape[1], 32 * array.shape[2]), np.uint16))
        elif not name.endswith("_proj_scales"):
            tensors[name] = array, dtype
    write_safetensors(folder / "model.safetensors", tensors)
    config = {name: value for name, value in CONFIG.items() if name != "quantization_config"}
    (folder / "config.json").write_text(json.dumps(config | ({"quantization_config": settings} if settings else {})))
    write_tokenizer(folder)
    return folder


def parts(**tensors):
    """What becomes of a linear layer's weight: suffix -> dtype, stored with one byte or four for a weight."""
    width = {"U8": np.uint8, "I8": np.int8, "F8_E4M3": np.uint8, "I32": np.int32, "F32": np.float32, "I16": np.int16}

    def change(module, weight):
        return {
            f"{module}.{name.replace('__', '.')}": (np.zeros((weight.shape[0], 1), width[dtype]), dtype)
            for name, dtype in tensors.items()
        }

    return change


NF4 = parts(weight="U8", weight__absmax="U8", weight__quant_map="F32", weight__quant_state__bitsandbytes__nf4="U8")
INT8 = parts(weight="I8", SCB="F32")
GPTQ = parts(qweight="I32", qzeros="I32", scales="F32", g_idx="I32")
AWQ = parts(qweight="I32", qzeros="I32", scales="F32")
FP8 = parts(weight="F8_E4M3", weight_scale_inv="F32")
STATIC_FP8 = parts(weight="F8_E4M3", weight_scale="F32", input_scale="F32")
NVFP4 = parts(weight="U8", weight_scale="F8_E4M3", weight_scale_2="F32")
PACKED = parts(weight_packed="U8", weight_scale="F8_E4M3", weight_global_scale="F32")
U8_SCALES = parts(weight="U8", weight_scale="U8")
EXL3 = parts(trellis="I16", suh="F32", svh="F32")

QUANTIZED = {
    "bitsandbytes, 4 bits": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, NF4, "bitsandbytes"),
    "bitsandbytes, 8 bits": ({"quant_method": "bitsandbytes", "load_in_8bit": True}, INT8, "bitsandbytes"),
    "GPTQ": ({"quant_method": "gptq", "bits": 4, "group_size": 128}, GPTQ, "GPTQ"),
    "AWQ": ({"quant_method": "awq", "bits": 4}, AWQ, "AWQ"),
    "FP8": ({"quant_method": "fp8", "weight_block_size": [128, 128]}, FP8, "FP8"),
    "FBGEMM": ({"quant_method": "fbgemm_fp8"}, FP8, "FBGEMM FP8"),
    "ModelOpt": ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, NVFP4, "NVIDIA's ModelOpt (NVFP4)"),
    "Quark": ({"quant_method": "quark", "export": {}}, U8_SCALES, "AMD Quark"),
    "compressed-tensors": (
        {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"},
        PACKED,
        "compressed-tensors (nvfp4-pack-quantized)",
    ),
    "torchao": ({"quant_method": "torchao", "quant_type": {"default": {}}}, INT8, "torchao"),
    "HQQ": ({"quant_method": "hqq"}, parts(W_q="U8", meta="U8"), "HQQ"),
    "AutoRound": ({"quant_method": "auto-round"}, GPTQ, "AutoRound"),
    "ExLlamaV3": ({"quant_method": "exl3"}, EXL3, "ExLlamaV3"),
    "EETQ": ({"quant_method": "eetq"}, parts(weight="I8", weight_scales="F32"), "EETQ"),
    "one that is new": ({"quant_method": "something-new"}, U8_SCALES, "something-new"),
    "bitsandbytes by its tensors": (None, NF4, "bitsandbytes"),
    "bitsandbytes in 8 bits by its tensors": (None, INT8, "bitsandbytes"),
    "GPTQ by its tensors": (None, GPTQ, "GPTQ"),
    "AWQ by its tensors": (None, AWQ, "AWQ or GPTQ"),
    "FP8 by its tensors": (None, FP8, "FP8"),
    "static FP8 by its tensors": (None, STATIC_FP8, "FP8"),
    "FP8 by its type alone": (None, parts(weight="F8_E4M3", weight_scale="F32"), "FP8"),
    "NVFP4 by its tensors": (None, NVFP4, "NVFP4"),
    "compressed-tensors by its tensors": (None, PACKED, "compressed-tensors"),
    "ExLlamaV3 by its tensors": (None, EXL3, "ExLlamaV3"),
    "strange settings": ({"quant_method": ["gptq"]}, GPTQ, "GPTQ"),
}


@pytest.mark.parametrize("case", QUANTIZED)
def test_other_quantizations(complaint, tmp_path, case):
    settings, change, name = QUANTIZED[case]
    folder = quantized(tmp_path / "given", settings, change)
    said = {complaint(command, folder) for command in (ALL if case in ("GPTQ", "FP8 by its tensors") else TWO)}
    assert len(said) == 1
    (line,) = said
    assert f"is quantized with {name}" in line
    assert "openai/gpt-oss-20b" in line


def test_tensors_of_other_quantizations_can_be_listed(tmp_path):
    folder = quantized(tmp_path / "given", {"quant_method": "bitsandbytes"}, NF4)
    assert "U8" in {tensor.dtype for tensor in Subject.of_folder(folder).tensors.values()}


def test_bytes_are_not_taken_for_mxfp4(tmp_path):
    folder = quantized(tmp_path / "given", None, U8_SCALES)
    stored = {dtype for group in inspect(Subject.of_folder(folder)).groups for dtype in group.dtypes}
    assert stored == {"BF16", "U8"}
    experts = inspect(Subject.of_folder(folder)).groups[0]
    assert experts.parameters < 1.5 * experts.bytes


def test_settings_that_outlived_their_quantization(tmp_path):
    """A merge leaves plain weights, and sometimes what config.json says of its base."""
    folder = bf16_folder(tmp_path / "source")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(config))
    assert all(group.dtypes.keys() == {"BF16"} for group in inspect(Subject.of_folder(folder)).groups)
    convert(folder, tmp_path / "made")
    open_converted(tmp_path / "made")
