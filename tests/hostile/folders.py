"""Model folders in which one thing is hostile, made from good ones; and which commands must refuse each."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hostile.mutations import text_of

ESCAPE = "\x1b]0;owned\x07\x1b[2J"
INDEX = "model.safetensors.index.json"
READERS = frozenset({"inspect", "inspect --tensors", "convert", "plan", "generate"})  # of headers
ALL = READERS | {"verify"}


CONFIG, TOKENIZER, PROVENANCE, STOPS = "config.json", "tokenizer.json", "provenance.json", "generation_config.json"
VERIFY, GENERATE, CONVERT = frozenset({"verify"}), frozenset({"generate"}), frozenset({"convert"})
CONFIGURED = READERS - {"inspect --tensors"}


@dataclass(frozen=True)
class Case:
    change: Callable[[Path], object]
    refused_by: frozenset[str]
    """Commands that must end with an error; the others may."""


def shard(folder: Path) -> Path:
    return min(folder.glob("*.safetensors"))


def header_of(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def rewrite(path: Path, header: Any, data: bytes, length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else text_of(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def with_header(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Change the parsed header of the first shard, or return what to write instead; its data stay."""

    def changed(folder: Path) -> None:
        header, data = header_of(shard(folder))
        result = change(header)
        rewrite(shard(folder), header if result is None else result, data)

    return changed


def with_entry(**fields: Any) -> Callable[[Path], None]:
    """Change fields of the first tensor of the first shard."""
    return with_header(lambda header: next(e for n, e in header.items() if n != "__metadata__").update(fields))


def with_name(name: str) -> Callable[[Path], None]:
    """Rename the first tensor, in its shard and in the index."""

    def changed(folder: Path) -> None:
        header, data = header_of(shard(folder))
        old = next(n for n in header if n != "__metadata__")
        header[name] = header.pop(old)
        rewrite(shard(folder), header, data)
        index = json.loads((folder / INDEX).read_text())
        index["weight_map"][name] = index["weight_map"].pop(old)
        (folder / INDEX).write_text(json.dumps(index))

    return changed


def with_length(length: int) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        with shard(folder).open("r+b") as file:
            file.write(struct.pack("<Q", length))

    return changed


def with_text(name: str, text: str | bytes) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())

    return changed


def with_json(name: str, **fields: Any) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        path = folder / name
        path.write_text(text_of((json.loads(path.read_text()) if path.exists() else {}) | fields))

    return changed


def with_file_name(name: str) -> Callable[[Path], None]:
    """Let the index name another file instead of the first shard."""

    def changed(folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text())
        old = shard(folder).name
        index["weight_map"] = {t: name if file == old else file for t, file in index["weight_map"].items()}
        (folder / INDEX).write_text(json.dumps(index))

    return changed


def instead(name: str | None, make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Put something else in the place of a file; None is the first shard."""

    def changed(folder: Path) -> None:
        path = folder / name if name else shard(folder)
        path.unlink(missing_ok=True)
        make(path)

    return changed


def broken_float(folder: Path) -> None:
    """Every BF16 weight of the first shard becomes a NaN."""
    header, data = header_of(shard(folder))
    changed = bytearray(data)
    for name, entry in header.items():
        if name != "__metadata__" and entry["dtype"] == "BF16":
            start, end = entry["data_offsets"]
            changed[start:end] = b"\xc0\x7f" * ((end - start) // 2)
    rewrite(shard(folder), header, bytes(changed))


def large_header(folder: Path) -> None:
    with_length(10**8)(folder)
    os.truncate(shard(folder), 10**8 + 8)


def many_links(folder: Path) -> None:
    """A thousand shards that are one, whose header is as large as it may be."""
    path = shard(folder)
    header, data = header_of(path)
    header["__metadata__"] = {"x": "x" * (4 * 2**20 - 20_000)}
    rewrite(path, header, data)
    index = json.loads((folder / INDEX).read_text())
    for number in range(1000):
        (folder / f"{number}.safetensors").symlink_to(path.name)
        index["weight_map"][f"x{number}"] = f"{number}.safetensors"
    (folder / INDEX).write_text(json.dumps(index))


def to(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


CASES: dict[str, Case] = {
    "header length beyond the file": Case(with_length(10**6 * 77), READERS),
    "header length 2^63": Case(with_length(2**63), READERS),
    "header length 0": Case(with_length(0), READERS),
    "header of 100 MB": Case(large_header, READERS),
    "header nested deeply": Case(with_header(lambda h: b"[" * 10**5), READERS),
    "header nested less deeply": Case(
        with_header(lambda h: text_of(h)[:-1].encode() + b', "a": ' + b"[" * 500 + b"]" * 500 + b"}"), READERS
    ),
    "header not UTF-8": Case(with_header(lambda h: text_of(h).encode().replace(b"model", b"mod\xff\xfe", 1)), READERS),
    "header in UTF-16": Case(with_header(lambda h: text_of(h).encode("utf-16")), READERS),
    "header with a name twice": Case(with_header(lambda h: (text_of(h)[:-1] + "," + text_of(h)[1:]).encode()), READERS),
    "header with NaN": Case(with_header(lambda h: text_of(h)[:-1].encode() + b', "a": NaN}'), READERS),
    "offset of 5000 digits": Case(
        with_header(lambda h: text_of(h).encode().replace(b"[0, ", b"[" + b"9" * 5000 + b", ", 1)), READERS
    ),
    "offsets of 4300 digits": Case(with_entry(shape=[1], data_offsets=[int("9" * 4300) - 2, int("9" * 4300)]), READERS),
    "offsets negative": Case(with_entry(data_offsets=[-2, 0]), READERS),
    "offsets reversed": Case(with_entry(data_offsets=[2, 0]), READERS),
    "offsets out of range": Case(with_entry(data_offsets=[2**40, 2**40 + 2], shape=[1]), READERS),
    "offsets in floats": Case(with_entry(data_offsets=[0.0, 2.0]), READERS),
    "shape that overflows": Case(with_entry(shape=[2**62, 4]), READERS),
    "shape of huge numbers": Case(with_entry(shape=[10**4000] * 300), READERS),
    "shape with 0": Case(with_entry(shape=[0, 2**62], data_offsets=[0, 0]), READERS),
    "shape of many numbers": Case(with_entry(shape=[1] * 10**4), READERS),
    "dtype that drives a terminal": Case(with_entry(dtype=ESCAPE), READERS),
    "dtype wrong": Case(with_entry(dtype="I16"), CONVERT | GENERATE | VERIFY),
    "dtype of a megabyte": Case(with_entry(dtype="x" * 10**6), READERS),
    "name that drives a terminal": Case(
        with_name(f"embed{ESCAPE}\n"), READERS - {"inspect", "inspect --tensors", "plan"}
    ),
    "name with a lone surrogate": Case(with_name("embed\ud800"), READERS),
    "name in markup": Case(with_name("embed[/red][link=x]"), READERS - {"inspect", "inspect --tensors", "plan"}),
    "name unknown": Case(with_name("elsewhere"), READERS - {"inspect --tensors", "plan"}),
    "file truncated": Case(lambda folder: os.truncate(shard(folder), shard(folder).stat().st_size - 1), ALL),
    "file empty": Case(lambda folder: os.truncate(shard(folder), 0), ALL),
    "index with another folder": Case(with_file_name("../../etc/passwd"), READERS),
    "index with an absolute path": Case(with_file_name("/etc/passwd"), READERS),
    "index with a directory": Case(with_file_name("."), READERS),
    "index with NUL": Case(with_file_name("a\0b"), READERS),
    "index with a long name": Case(with_file_name("a" * 5000), READERS),
    "index with a name that drives a terminal": Case(with_file_name(ESCAPE), READERS),
    "index with a number": Case(with_json(INDEX, weight_map={"a": 1}), READERS),
    "index without a map": Case(with_text(INDEX, "[1]"), READERS),
    "a thousand links to one shard": Case(many_links, frozenset({"inspect"})),
    "index empty": Case(with_json(INDEX, weight_map={}), CONFIGURED),
    "shard is a FIFO": Case(instead(None, os.mkfifo), ALL),
    "shard is a directory": Case(instead(None, os.mkdir), ALL),
    "shard is /dev/zero": Case(instead(None, to("/dev/zero")), ALL),
    "shard is a dangling link": Case(instead(None, to("nowhere")), ALL),
    "shard is a loop": Case(lambda folder: instead(None, to(shard(folder).name))(folder), ALL),
    "index is a FIFO": Case(instead(INDEX, os.mkfifo), READERS),
    "index is a dangling link": Case(instead(INDEX, to("nowhere")), READERS),
    "config is a FIFO": Case(instead(CONFIG, os.mkfifo), CONFIGURED),
    "config is /dev/zero": Case(instead(CONFIG, to("/dev/zero")), CONFIGURED),
    "config is a loop": Case(instead(CONFIG, to(CONFIG)), CONFIGURED),
    "config is a dangling link": Case(instead(CONFIG, to("nowhere")), CONFIGURED),
    "config is a list": Case(with_text(CONFIG, "[]"), CONFIGURED),
    "config is not UTF-8": Case(with_text(CONFIG, b'{"model_type": "\xff"}'), CONFIGURED),
    "config is nested deeply": Case(with_json(CONFIG, deep=json.loads("[" * 400 + "]" * 400)), CONFIGURED),
    "config of 100 MB": Case(lambda folder: os.truncate(folder / CONFIG, 10**8), CONFIGURED),
    "config with Infinity": Case(with_json(CONFIG, other=float("inf")), CONFIGURED),
    "config with a lone surrogate": Case(with_json(CONFIG, architectures=["\ud800"]), CONFIGURED),
    "config with another model type": Case(with_json(CONFIG, model_type=ESCAPE), CONFIGURED),
    "config with 10^9 layers": Case(with_json(CONFIG, num_hidden_layers=10**9), CONFIGURED),
    "config with 2^31 heads": Case(with_json(CONFIG, num_attention_heads=2**31), CONFIGURED),
    "config with 2^30 heads": Case(with_json(CONFIG, num_attention_heads=2**30), GENERATE | CONVERT),
    "config with 2^31 - 1 experts": Case(with_json(CONFIG, num_local_experts=2**31 - 1), GENERATE | CONVERT),
    "config with a huge window": Case(with_json(CONFIG, sliding_window=2**31 - 1), frozenset()),
    "config with a huge context": Case(with_json(CONFIG, max_position_embeddings=2**31 - 1), frozenset()),
    "config with a huge number": Case(with_json(CONFIG, rope_theta=10**400), CONFIGURED),
    "config with a tiny number": Case(
        with_json(CONFIG, rope_scaling={"rope_type": "yarn", "factor": 2.0, "beta_slow": 1e-320, "truncate": True}),
        CONFIGURED,
    ),
    "config with a list of 10^5 layers": Case(with_json(CONFIG, layer_types=["full_attention"] * 10**5), CONFIGURED),
    "config with strange quantization": Case(
        with_json(CONFIG, quantization={"bits": [], "group_size": {}}), CONFIGURED
    ),
    "config with an escape in quantization": Case(with_json(CONFIG, quantization={ESCAPE: {"bits": 1}}), CONFIGURED),
    "tokenizer is garbage": Case(with_text(TOKENIZER, b"\xff\x00garbage"), GENERATE),
    "tokenizer is an empty object": Case(with_text(TOKENIZER, "{}"), GENERATE),
    "tokenizer nested deeply": Case(with_text(TOKENIZER, "[" * 10**6), GENERATE),
    "tokenizer is a FIFO": Case(instead(TOKENIZER, os.mkfifo), GENERATE),
    "tokenizer is a directory": Case(instead(TOKENIZER, os.mkdir), GENERATE),
    "tokenizer without special tokens": Case(with_json(TOKENIZER, added_tokens=[]), GENERATE),
    "tokenizer that pads": Case(
        with_json(
            TOKENIZER,
            padding={
                "strategy": {"Fixed": 10**9},
                "direction": "Right",
                "pad_to_multiple_of": None,
                "pad_id": 0,
                "pad_type_id": 0,
                "pad_token": "x",
            },
        ),
        frozenset(),
    ),
    "tokenizer with another decoder": Case(
        with_json(TOKENIZER, decoder={"type": "Strip", "content": "a", "start": 9, "stop": 9}), GENERATE
    ),
    "stop ids are garbage": Case(with_text(STOPS, "\x00"), GENERATE),
    "stop ids are of a wrong type": Case(with_json(STOPS, eos_token_id={"a": None}), GENERATE),
    "stop ids are strings": Case(with_json(STOPS, eos_token_id=["1"]), GENERATE),
    "stop ids are a FIFO": Case(instead(STOPS, os.mkfifo), GENERATE),
    "provenance is garbage": Case(with_text(PROVENANCE, "{"), VERIFY),
    "provenance is a FIFO": Case(instead(PROVENANCE, os.mkfifo), VERIFY),
    "provenance is a dangling link": Case(instead(PROVENANCE, to("nowhere")), VERIFY),
    "provenance nested deeply": Case(with_text(PROVENANCE, '{"a":' * 500 + "1" + "}" * 500), VERIFY),
    "provenance with a path": Case(with_text(PROVENANCE, '{"sha256": {"../a": "0"}}'), VERIFY),
    "provenance with escapes": Case(
        with_text(PROVENANCE, text_of({"sha256": {ESCAPE: "0"}, "recipe": ESCAPE, "source": {"id": "[/red]"}})), VERIFY
    ),
    "provenance with a long name": Case(with_json(PROVENANCE, sha256={"a" * 300: "0"}), VERIFY),
    "provenance with surrogates": Case(with_text(PROVENANCE, '{"sha256": {"\\ud800": "0"}}'), VERIFY),
    "license that drives a terminal": Case(with_text("LICENSE", ESCAPE + "[/red]"), frozenset()),
    "license is a FIFO": Case(instead("LICENSE", os.mkfifo), frozenset()),
    "license is /dev/zero": Case(instead("LICENSE", to("/dev/zero")), frozenset()),
    "weights are NaN": Case(broken_float, CONVERT | VERIFY),
}


def hostile_copy(good: Path, folder: Path, case: Case) -> Path:
    shutil.copytree(good, folder)
    case.change(folder)
    return folder
