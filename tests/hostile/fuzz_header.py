"""Coverage-guided fuzzing of `read_header` and `ModelConfig.from_dict`, run by hand; `test_seeds.py` replays findings.

It needs atheris (https://github.com/google/atheris), which is no dependency, and NumPy:

    python3.11 -m venv fuzz && fuzz/bin/pip install atheris numpy
    mkdir corpus
    PYTHONPATH=.:tests fuzz/bin/python tests/hostile/fuzz_header.py header corpus -max_total_time=3600 -max_len=4096

`config` instead of `header` fuzzes config.json. An input of `header` is a whole file, or, where its first bytes are
MARK, a header alone, for which the harness adds a right length and as many bytes of data as the next two say: most
random changes would otherwise only break the length. Whatever is not a GptOssError with one printable line is a
finding, and so is a header that is accepted though its tensors do not fill the file.
"""

from __future__ import annotations

import os
import random
import struct
import sys
import tempfile
from pathlib import Path

MARK = b"\xff"


def file_of(data: bytes) -> bytes:
    """The file that an input stands for."""
    if not data.startswith(MARK) or len(data) < 3:
        return data
    text = data[3:]
    return struct.pack("<Q", len(text)) + text + bytes(int.from_bytes(data[1:3], "little"))


def check_header(path: Path) -> None:
    """Raises whatever is wrong with read_header's answer to a file."""
    from gptoss_mlx.checkpoint import read_header
    from gptoss_mlx.errors import GptOssError

    try:
        tensors = read_header(path).tensors.values()
    except GptOssError as error:
        assert str(error).isprintable(), repr(error)
        assert str(path) in str(error)
        return
    position = min((tensor.start for tensor in tensors), default=path.stat().st_size)
    for tensor in sorted(tensors, key=lambda tensor: tensor.start):
        assert tensor.start == position < tensor.end
        position = tensor.end
    assert position == path.stat().st_size


def check_config(data: bytes) -> None:
    """Raises whatever is wrong with ModelConfig's answer to the bytes of a config.json."""
    from gptoss_mlx.config import ModelConfig
    from gptoss_mlx.errors import GptOssError
    from gptoss_mlx.foreign import parse_json

    try:
        value = parse_json(data)
    except ValueError:
        return
    try:
        config = ModelConfig.from_dict(value)
    except GptOssError as error:
        assert str(error).isprintable(), repr(error)
        return
    assert len(config.layer_types) == config.num_layers <= 1024
    hash(config.rope)


def header_seeds() -> list[bytes]:
    """Small headers such as real ones, marked."""
    from hostile.mutations import text_of

    def entry(dtype: str, shape: list[int], start: int, end: int) -> dict:
        return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}

    layer = "model.layers.0"
    published = {
        "__metadata__": {"format": "pt"},
        f"{layer}.mlp.experts.down_proj_blocks": entry("U8", [2, 4, 2, 16], 0, 256),
        f"{layer}.mlp.experts.down_proj_scales": entry("U8", [2, 4, 2], 256, 272),
        f"{layer}.mlp.experts.down_proj_bias": entry("BF16", [2, 4], 272, 288),
        f"{layer}.self_attn.sinks": entry("BF16", [8], 288, 304),
    }
    one = {"a": entry("F32", [2, 3], 0, 24), "__metadata__": None}
    return [
        *(MARK + struct.pack("<H", size) + text_of(header).encode() for header, size in ((published, 304), (one, 24))),
        MARK + struct.pack("<H", 0) + b"{}",
        file_of(MARK + struct.pack("<H", 24) + text_of(one).encode()),
    ]


def config_seeds() -> list[bytes]:
    from checkpoints import config_of
    from hostile.mutations import text_of

    quantization = {"group_size": 64, "bits": 4, "lm_head": {"group_size": 32, "bits": 4, "mode": "mxfp4"}}
    return [text_of(config).encode() for config in (config_of(), config_of(quantization=quantization))]


def main() -> None:
    import atheris

    with atheris.instrument_imports(include=["gptoss_mlx", "json"]):
        pass
    import json

    from hostile.mutations import mutated, text_of

    target = sys.argv.pop(1)
    path = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)) / "model.safetensors"

    def one_input(data: bytes) -> None:
        if target == "config":
            check_config(data)
        else:
            path.write_bytes(file_of(data))
            check_header(path)

    def mutator(data: bytes, max_size: int, seed: int) -> bytes:
        """Every other time a change of what the JSON says, else one of bytes."""
        draw = random.Random(seed)
        first = 0 if target == "config" else 3
        if draw.random() < 0.5:
            try:
                value = json.loads(data[first:])
                for _ in range(draw.randrange(1, 4)):
                    value = mutated(value, draw)
                text = text_of(value).encode()
                if len(text) + first <= max_size:
                    return data[:first] + text
            except (ValueError, RecursionError):
                pass
        return atheris.Mutate(data, max_size)

    corpus = next((Path(argument) for argument in sys.argv[1:] if not argument.startswith("-")), None)
    if corpus:
        for number, seed in enumerate(header_seeds() if target == "header" else config_seeds()):
            (corpus / f"seed-{number}").write_bytes(seed)
    atheris.Setup(sys.argv, one_input, custom_mutator=mutator)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
