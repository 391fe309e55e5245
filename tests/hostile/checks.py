"""What may come of a hostile header or config.json, as checks of one input; and inputs to start from."""

from __future__ import annotations

import struct
from pathlib import Path

from checkpoints import config_of
from gptoss_mlx.errors import GptOssError
from gptoss_mlx.model.config import ModelConfig
from gptoss_mlx.model.safetensors import read_header
from gptoss_mlx.untrusted import parse_json
from hostile.mutations import text_of

MARK = b"\xff"


def file_of(data: bytes) -> bytes:
    """The safetensors file that an input stands for: itself, or, behind MARK, the size of the data and a header.

    Without the second form most random changes would only break the header's length.
    """
    if not data.startswith(MARK) or len(data) < 3:
        return data
    text = data[3:]
    return struct.pack("<Q", len(text)) + text + bytes(int.from_bytes(data[1:3], "little"))


def check_header(path: Path) -> None:
    """Raises whatever is wrong with read_header's answer to a file."""
    message = None
    try:
        tensors = read_header(path).tensors.values()
    except GptOssError as error:
        message = str(error)
    if message is not None:
        assert message.isprintable()
        assert str(path) in message
        return
    position = min((tensor.start for tensor in tensors), default=path.stat().st_size)
    for tensor in sorted(tensors, key=lambda tensor: tensor.start):
        assert tensor.start == position < tensor.end
        position = tensor.end
    assert position == path.stat().st_size


def check_config(data: bytes) -> None:
    """Raises whatever is wrong with ModelConfig's answer to the bytes of a config.json."""
    message = None
    try:
        config = ModelConfig.from_dict(parse_json(data))
    except ValueError:  # of parse_json
        return
    except GptOssError as error:
        message = str(error)
    if message is not None:
        assert message.isprintable()
        return
    assert len(config.layer_types) == config.num_layers <= 1024
    assert config.hidden_size % 32 == config.intermediate_size % 32 == 0
    assert config.experts_per_token <= config.num_experts < 2**31
    assert 1 <= config.rope.factor <= 1e30


def header_seeds() -> list[bytes]:
    """Small headers such as real ones, and a whole file."""

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
    marked = [
        MARK + struct.pack("<H", size) + text_of(header).encode() for header, size in ((published, 304), (one, 24))
    ]
    return [*marked, file_of(marked[1])]


def config_seeds() -> list[bytes]:
    quantization = {"group_size": 64, "bits": 4, "lm_head": {"group_size": 32, "bits": 4, "mode": "mxfp4"}}
    return [text_of(config).encode() for config in (config_of(), config_of(quantization=quantization))]
