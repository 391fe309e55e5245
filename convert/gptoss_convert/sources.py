"""A checkpoint on disk -> one stream of canonical weights.

Which of the `layouts` it came from ends here; with an adapter, the weights are those with its changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from gptoss_mlx.engine.special_tokens import CALL, RETURN
from gptoss_mlx.engine.special_tokens import NAMES as HARMONY
from gptoss_mlx.engine.tokenizer import Tokenizer
from gptoss_mlx.errors import GptOssError
from gptoss_mlx.model.checkpoint import FLOATS, Checkpoint
from gptoss_mlx.model.config import ModelConfig, read_config
from gptoss_mlx.model.recognition import check_form
from gptoss_mlx.model.safetensors import CheckpointError
from gptoss_mlx.untrusted import lexists

from .canonical_weights import Blocks, Plain, Rows
from .errors import ConvertError
from .layouts import LAYOUTS, ORIGINAL, PUBLISHED, Form, Layout, published_name
from .lora import Adapter, Merged

TOKENIZER = "tokenizer.json"
# Copied as they are, where a source has them.
AUXILIARY_FILES = (
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
    "LICENSE",
    "USAGE_POLICY",
)
ENDOFTEXT = "<|endoftext|>"
TOKENIZER_FROM = f"openai/gpt-oss-20b {TOKENIZER}"  # all models of the family have the same

CONVERTED = ".experts.gate_proj.weight"  # in no layout of a source
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"

Weight = Plain | Blocks | Merged


@dataclass(frozen=True)
class Unit:
    """Weights that come from the same tensors, with the files and dtypes of these."""

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
        # Tensors that are not stored because they are the same as another one.
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

    def auxiliary_file(self, name: str) -> Path | None:
        """A file beside the weights; an `original/` folder has those of the tokenizer above it."""
        found = next((folder / name for folder in self._folders if (folder / name).is_file()), None)
        if found and not _is_at_home(found):
            raise CheckpointError(
                f"{found} is a link to a file outside its folder, which is not copied: replace the link by the file"
            )
        return found

    @property
    def _folders(self) -> tuple[Path, ...]:
        """The folders that may hold auxiliary files."""
        return (self.folder, self.folder.parent) if self.layout is ORIGINAL else (self.folder,)

    @property
    def has_tokenizer(self) -> bool:
        return any(lexists(folder / TOKENIZER) for folder in self._folders)

    def tokenizer(self) -> Tokenizer:
        """The source's tokenizer. Raises ConvertError where there is none, or it does not fit this model."""
        folder = next((folder for folder in self._folders if lexists(folder / TOKENIZER)), self.folder)
        try:
            tokenizer = Tokenizer.load(folder)
            largest = max(tokenizer.largest_id, *map(tokenizer.special, HARMONY))
        except GptOssError as error:
            raise ConvertError(f"{error}; `hf download {TOKENIZER_FROM}` gets the published one") from None
        if largest >= self.config.vocab_size:
            raise ConvertError(
                f"{folder / TOKENIZER} has the id {largest:,}, and the model a vocabulary of"
                f" {self.config.vocab_size:,}: it is another model's"
            )
        return tokenizer

    def stop_ids(self) -> list[int]:
        """The ids of the tokens that end an answer; none where the source has no tokenizer. Raises ConvertError for a
        tokenizer that is not this model's."""
        if not self.has_tokenizer:
            return []
        tokenizer = self.tokenizer()
        return [tokenizer.special(name) for name in (RETURN, ENDOFTEXT, CALL)]

    def weights(self) -> Iterator[Weight]:
        """Every weight of the model, layer by layer; none is read yet."""
        for unit in self.units():
            yield from unit.weights

    def units(self) -> Iterator[Unit]:
        """The same weights, with the files that they come from."""
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


def _renamed(checkpoint: Checkpoint) -> Checkpoint:
    names: dict[str, str] = {}
    for name in checkpoint.tensors:
        if (other := names.setdefault(published_name(name), name)) != name:
            raise CheckpointError(f"{checkpoint.folder} has the same tensor twice: {other!r} and {name!r}: remove one")
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
    """The same for the content of a config.json."""
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
        raise CheckpointError(f"{checkpoint.folder} has tensors that gpt-oss does not have: {_some(unknown)}")
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
