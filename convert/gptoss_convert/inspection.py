"""What a checkpoint holds, from its headers: parameters by tensor group, in total and per token; types; bytes.

Of a folder, or of a repository on the hub without its download. Knows the names of all layouts, of sources and of
converted folders; reads weights for the statistics of a tensor alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gptoss_mlx.errors import GptOssError
from gptoss_mlx.model.bf16 import bf16_to_f32
from gptoss_mlx.model.checkpoint import FLOATS, Checkpoint
from gptoss_mlx.model.config import ModelConfig, Quantization
from gptoss_mlx.model.recognition import check_form
from gptoss_mlx.model.safetensors import CheckpointError, TensorInfo, as_array
from gptoss_mlx.provenance import PROVENANCE, json_object, provenance_of
from gptoss_mlx.untrusted import open_regular, parsed

from .sources import CONVERTED, as_published, published_config

if TYPE_CHECKING:
    from .hub import Repository

# A part of a tensor's name -> its group, the first that is found.
GROUP_BY_PART = {
    ".experts.": "experts",
    ".mlp.mlp1_": "experts",
    ".mlp.mlp2_": "experts",
    ".router.": "routers",
    ".mlp.gate.": "routers",
    "norm": "norms and sinks",
    "sinks": "norms and sinks",
    "lm_head": "head",
    "unembedding": "head",
    "embed": "embeddings",
    "attn": "attention",
}
TENSOR_GROUPS = ("experts", "attention", "routers", "norms and sinks", "embeddings", "head")
BINS = 24


@dataclass(frozen=True)
class TensorGroup:
    """Tensors with the same task in the network."""

    name: str
    parameters: int
    active: int
    """Parameters that are used for one token; the row of the embeddings that it looks up is not counted."""
    bytes: int
    bytes_per_token: int
    dtypes: dict[str, int]
    """Bytes by type; MXFP4 and affine codes have types of their own."""

    @property
    def bits_per_weight(self) -> float:
        return bits_per_weight(self.bytes, self.parameters)

    @property
    def main_dtype(self) -> str:
        """The type that takes the most bytes."""
        return max(self.dtypes, key=self.dtypes.__getitem__)


@dataclass(frozen=True)
class Inspection:
    path: str
    layers: int
    experts: int
    experts_per_token: int
    context: int
    groups: list[TensorGroup]
    license: str | None
    provenance: dict[str, Any] | None
    to_round: dict[str, list[str]]
    """Dtype other than BF16 -> tensors of a source that have it; a conversion rounds those it does not quantize."""

    def total(self, name: str) -> int:
        """The sum of a field over all groups."""
        return sum(getattr(group, name) for group in self.groups)

    @property
    def bits_per_weight(self) -> float:
        return bits_per_weight(self.total("bytes"), self.total("parameters"))

    def as_dict(self) -> dict[str, Any]:
        data = asdict(self)
        data["families"] = data.pop("groups")
        names = ("parameters", "active", "bytes", "bytes_per_token")
        return data | {f"total_{name}": self.total(name) for name in names}


@dataclass(frozen=True)
class Statistics:
    """Statistics of the numbers that a tensor stores: BF16 as its values, codes as they are."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    least: float
    most: float
    mean: float
    deviation: float
    not_finite: int
    edges: list[float]
    """Edges of the histogram's bins, BINS + 1 of them."""
    counts: list[int]


@dataclass(frozen=True)
class Subject:
    """A checkpoint that can be inspected: its headers, its small files, and a way to the weights."""

    path: str
    raw_config: Any
    """The content of config.json, in its published form."""
    config: ModelConfig
    tensors: Mapping[str, TensorInfo]
    license: str | None
    """The first line of LICENSE that says something."""
    provenance: dict[str, Any] | None
    view: Callable[[str], np.ndarray]
    """A tensor's name -> its stored numbers, BF16 as uint16."""

    @classmethod
    def of_folder(cls, folder: Path) -> Subject:
        """A folder in any layout. Raises GptOssError."""
        checkpoint, raw_config = Checkpoint.open(folder), published_config(folder)
        return cls(
            path=str(folder),
            raw_config=raw_config,
            config=ModelConfig.of_folder(folder, raw_config),
            tensors=checkpoint.tensors,
            license=_license(folder / "LICENSE"),
            provenance=provenance_of(folder),
            view=checkpoint.view,
        )

    @classmethod
    def of_repository(cls, repository: Repository) -> Subject:
        """A repository on the hub: headers and small files are fetched now, a tensor when it is viewed.

        Raises GptOssError.
        """
        where = Path(repository.id)

        def small(name: str) -> bytes | None:
            return repository.read(name) if name in repository.files else None

        def view(name: str) -> np.ndarray:
            path, tensor = checkpoint.file_of[name], checkpoint.tensors[name]
            data = repository.read(path.name, tensor.start, tensor.end)
            return as_array(path, tensor, np.frombuffer(data, np.uint8))

        raw_config = as_published(parsed(where / "config.json", repository.read("config.json")))
        config = ModelConfig.of_folder(where, raw_config)
        checkpoint = repository.checkpoint(where)
        license, provenance, made_by = small("LICENSE"), small(PROVENANCE), where / PROVENANCE
        return cls(
            path=f"{repository.id}, commit {repository.commit}",
            raw_config=raw_config,
            config=config,
            tensors=checkpoint.tensors,
            license=_first_line(license) if license else None,
            provenance=json_object(made_by, parsed(made_by, provenance)) if provenance else None,
            view=view,
        )


def inspect(subject: Subject) -> Inspection:
    """Describe what is in any layout. Raises GptOssError, also for weights in a form that nothing here reads."""
    config = subject.config
    check_form(subject.path, subject.raw_config, subject.tensors)
    groups = _groups(subject)
    if not groups:
        raise CheckpointError(f"{subject.path} has no weights")
    return Inspection(
        path=subject.path,
        layers=config.num_layers,
        experts=config.num_experts,
        experts_per_token=config.experts_per_token,
        context=config.max_context,
        groups=groups,
        license=subject.license,
        provenance=subject.provenance,
        to_round=_to_round(subject.tensors),
    )


def _to_round(tensors: Mapping[str, TensorInfo]) -> dict[str, list[str]]:
    if any(CONVERTED in name for name in tensors):
        return {}
    others = [dtype for dtype in FLOATS if dtype != "BF16"]
    named = {dtype: [name for name, tensor in tensors.items() if tensor.dtype == dtype] for dtype in others}
    return {dtype: names for dtype, names in named.items() if names}


def tensors_text(names: Sequence[str]) -> str:
    """How many these are, and of which groups."""
    found = set(map(group_of, names))
    groups = ", ".join(group for group in TENSOR_GROUPS if group in found)
    return f"{len(names)} tensor{'s' * (len(names) > 1)} ({groups})"


def _groups(subject: Subject) -> list[TensorGroup]:
    tensors, config = subject.tensors, subject.config
    members: dict[str, list[TensorInfo]] = {name: [] for name in TENSOR_GROUPS}
    for name, tensor in tensors.items():
        group = group_of(name)
        if group is None:
            raise CheckpointError(f"{subject.path}: {name!r} is no tensor of gpt-oss")
        members[group].append(tensor)
    groups = []
    for name, its_tensors in members.items():
        parameters = sum(_parameters(tensor, tensors, config) for tensor in its_tensors)
        size = sum(tensor.nbytes for tensor in its_tensors)
        share = {"experts": config.experts_per_token / config.num_experts, "embeddings": 0}.get(name, 1)
        dtypes: Counter[str] = Counter()
        for tensor in its_tensors:
            dtypes[_form(tensor, tensors, config)] += tensor.nbytes
        groups.append(TensorGroup(name, parameters, int(parameters * share), size, int(size * share), dict(dtypes)))
    return [group for group in groups if group.parameters]


def group_of(name: str) -> str | None:
    """A tensor's group; None for a name that no gpt-oss checkpoint has."""
    return next((group for part, group in GROUP_BY_PART.items() if part in name), None)


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _quantization(name: str, tensors: Mapping[str, TensorInfo], config: ModelConfig) -> Quantization | None:
    return config.stored_form(_module(name), tensors)


def _is_mxfp4(tensor: TensorInfo) -> bool:
    """Whether each of its bytes holds two weights, as in a source."""
    return tensor.dtype == "U8" and tensor.name.endswith(("_blocks", ".blocks"))


def _parameters(tensor: TensorInfo, tensors: Mapping[str, TensorInfo], config: ModelConfig) -> int:
    """The number of weights that a tensor holds; scales and biases, which only help to decode another, hold none."""
    count = math.prod(tensor.shape)
    name = tensor.name
    if name.endswith(("_scales", ".scales", ".biases")):
        return 0
    if _is_mxfp4(tensor):
        return 2 * count
    if q := _quantization(name, tensors, config):
        return count * 32 // q.bits if name.endswith(".weight") else count
    return count


def _form(tensor: TensorInfo, tensors: Mapping[str, TensorInfo], config: ModelConfig) -> str:
    if _is_mxfp4(tensor) or (tensor.dtype == "U8" and tensor.name.endswith(("_scales", ".scales"))):
        return "MXFP4"
    q = _quantization(tensor.name, tensors, config)
    if q is None or tensor.name.endswith(".bias"):
        return tensor.dtype
    return "MXFP4" if q.mode == "mxfp4" else f"{q.bits}-bit affine"


def _license(path: Path) -> str | None:
    """The first line of the file; None where it cannot be read."""
    try:
        with open_regular(path) as file:
            return _first_line(file.read(4096))
    except OSError:
        return None


def _first_line(text: bytes) -> str | None:
    lines = text.decode(errors="replace").splitlines()
    return next((line.strip() for line in lines if line.strip()), None)


def statistics(subject: Subject, name: str) -> Statistics:
    """The statistics of one tensor. Raises GptOssError where there is no such tensor."""
    if name not in subject.tensors:
        near = [known for known in subject.tensors if name in known][:3]
        hint = f"; there are {', '.join(near)}" if near else ""
        raise GptOssError(f"{subject.path} has no tensor {name!r}{hint}")
    tensor, view = subject.tensors[name], subject.view(name).reshape(-1)
    least, most, total, squares, bad = math.inf, -math.inf, 0.0, 0.0, 0
    pieces = [slice(start, start + 2**22) for start in range(0, max(view.size, 1), 2**22)]
    for piece in pieces:
        values, broken = _finite(view[piece], tensor.dtype)
        bad += broken
        if values.size:
            least, most = min(least, float(values.min())), max(most, float(values.max()))
            total, squares = total + float(values.sum()), squares + float(np.square(values).sum())
    count = max(view.size - bad, 1)
    if least > most:
        least = most = 0.0
    edges = np.linspace(least, most if most > least else least + 1, BINS + 1)
    counts = sum((np.histogram(_finite(view[piece], tensor.dtype)[0], edges)[0] for piece in pieces), np.zeros(BINS))
    mean = total / count
    deviation = math.sqrt(max(squares / count - mean**2, 0))
    return Statistics(
        name, tensor.dtype, tensor.shape, least, most, mean, deviation, bad, edges.tolist(), counts.astype(int).tolist()
    )


def _finite(part: np.ndarray, dtype: str) -> tuple[np.ndarray, int]:
    """The finite values as float64, and the number of the others."""
    if dtype == "BF16":
        part = bf16_to_f32(part)
    values = part.astype(np.float64)
    finite = np.isfinite(values)
    return values[finite], int(values.size - finite.sum())


def bits_per_weight(nbytes: int, parameters: int) -> float:
    return 8 * nbytes / parameters


def count_text(parameters: int) -> str:
    return f"{parameters / 1e9:.2f} B" if parameters >= 1e9 else f"{parameters / 1e6:.2f} M"
