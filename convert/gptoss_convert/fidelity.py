"""How far a converted folder is from its source: the error of each tensor, and the predictions of both on a text.

Both networks are computed in FP32 from the stored weights, a matrix at a time (`reference_network`), so that all
differences come from the conversion. Knows nothing of recipes: any folder that MLX-LM would load can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from gptoss_mlx.engine.divergence import kl_divergence
from gptoss_mlx.errors import GptOssError
from gptoss_mlx.model.safetensors import CheckpointError
from gptoss_mlx.progress import OnProgress, Progress, no_progress

from .arrays import in_parallel
from .inspection import TENSOR_GROUPS, group_of
from .reference_network import ConvertedWeights, Network, SourceWeights, in_windows, windows
from .sources import Source

NAME = "fidelity.json"  # in a folder that was compared when it was made
TOKENS = 1024
CHUNK = 2**23  # values of a tensor, or of the head, that are decoded at a time: 32 MB in FP32
TINY = 1e-30  # a norm for tensors of zeros


@dataclass(frozen=True)
class TensorDifference:
    """A tensor as it is stored, compared with the source."""

    name: str
    error: float
    """The norm of the difference."""
    norm: float
    """The norm of the source's tensor."""
    largest: float
    """The largest absolute difference."""

    @property
    def relative(self) -> float:
        return self.error / max(self.norm, TINY)

    @property
    def exact(self) -> bool:
        """Whether all values are the source's."""
        return self.largest == 0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"relative": self.relative, "exact": self.exact}


@dataclass(frozen=True)
class GroupDifference(TensorDifference):
    """The tensors of a group, compared as one."""

    tensors: int
    exact_tensors: int
    worst: str
    """The tensor with the largest relative error."""


@dataclass(frozen=True)
class Predictions:
    """How the source and the model predict the token after each token of a text."""

    tokens: int
    kl_mean: float
    """Mean over the tokens of the Kullback-Leibler divergence of the model from the source, in nats."""
    kl_p99: float
    """The 99th percentile of the same."""
    source_perplexity: float
    model_perplexity: float
    same_top: float
    """Share of the tokens after which both find the same token the likeliest."""


@dataclass(frozen=True)
class Fidelity:
    predictions: Predictions
    tensors: list[TensorDifference]

    @property
    def groups(self) -> list[GroupDifference]:
        members = {group: [each for each in self.tensors if group_of(each.name) == group] for group in TENSOR_GROUPS}
        return [_group_difference(name, tensors) for name, tensors in members.items()]

    def as_dict(self) -> dict[str, Any]:
        return {
            **asdict(self.predictions),
            "families": [group.as_dict() for group in self.groups],
            "tensors": [tensor.as_dict() for tensor in self.tensors],
        }


def compare(
    source: Source,
    folder: Path,
    text: str,
    tokens: int,
    on_progress: OnProgress = no_progress,
) -> Fidelity:
    """Compare a converted folder with the source that it was made from, on at most `tokens` tokens of a text.

    Takes memory for a few matrices in FP32 and a few activations of all tokens, whatever the size of the model.
    Raises GptOssError for a folder that is not a conversion of the source, and for a text of less than two tokens.
    """
    original, converted = SourceWeights(source), ConvertedWeights(folder)
    _check_conversion(original, converted, f"{folder} is not a conversion of {source.folder}")
    ids, following = windows(source, text, tokens)
    progress = _ByteCount(original, on_progress)
    tensors = [_difference(name, original, converted, progress) for name in original.shapes]
    return Fidelity(_predictions(original, converted, ids, following, progress), tensors)


def predictions(source: Source, folder: Path, ids: np.ndarray) -> Predictions:
    """Compare only the predictions, on these token ids [tokens]. Raises GptOssError."""
    original, converted = SourceWeights(source), ConvertedWeights(folder)
    return _predictions(original, converted, *in_windows(ids), _ByteCount(original, no_progress))


def _check_conversion(original: SourceWeights, converted: ConvertedWeights, refusal: str) -> None:
    for field in fields(original.config):
        ours, theirs = (getattr(weights.config, field.name) for weights in (original, converted))
        if field.name != "quantization" and ours != theirs:
            raise GptOssError(f"{refusal}: {field.name} is {theirs}, and the source's is {ours}")
    for name, shape in original.shapes.items():
        try:
            converted.check(name, shape)
        except CheckpointError as error:
            raise GptOssError(f"{refusal}: {error}") from None


class _ByteCount:
    """Counts bytes of weights in FP32: every tensor once to compare it, layers and head once more in each network."""

    def __init__(self, weights: SourceWeights, report: OnProgress):
        sizes = {name: 4 * math.prod(shape) for name, shape in weights.shapes.items()}
        layers = weights.config.num_layers * weights.layer_bytes
        self._total = sum(sizes.values()) + 2 * (layers + sizes["lm_head.weight"])
        self._done, self._report = 0, report

    def add(self, size: int) -> None:
        self._done += size
        self._report(Progress("compare", self._done, self._total))


def _chunks(shape: tuple[int, ...]) -> Iterator[slice]:
    """A tensor's first dimension in ranges of about CHUNK values."""
    step = max(1, CHUNK * shape[0] // math.prod(shape))
    return (slice(start, start + step) for start in range(0, shape[0], step))


def _difference(
    name: str, original: SourceWeights, converted: ConvertedWeights, progress: _ByteCount
) -> TensorDifference:
    error = norm = largest = 0.0
    for rows in _chunks(original.shapes[name]):
        right, stored = original.values(name, rows), converted.values(name, rows)
        sums = in_parallel(_sums, right.reshape(-1, right.shape[-1]), stored.reshape(-1, right.shape[-1]))
        error, norm, largest = error + sums[0].sum(), norm + sums[1].sum(), max(largest, sums[2].max())
        progress.add(right.nbytes)
    if not math.isfinite(error):
        folder = (converted if math.isfinite(norm) else original).folder
        raise CheckpointError(f"{folder}: {name!r} has values that are not finite numbers: the checkpoint is corrupt")
    return TensorDifference(name, math.sqrt(error), math.sqrt(norm), float(largest))


@np.errstate(over="ignore", invalid="ignore")
def _sums(right: np.ndarray, stored: np.ndarray) -> tuple[np.ndarray, ...]:
    """float32 [rows, columns] -> squared error, squared norm and largest error of each row, float64 [rows]."""
    difference = stored - right
    squared = (np.einsum("ri,ri->r", x, x, dtype=np.float64) for x in (difference, right))
    return (*squared, np.maximum(difference.max(axis=1), -difference.min(axis=1)).astype(np.float64))


def _group_difference(name: str, tensors: list[TensorDifference]) -> GroupDifference:
    return GroupDifference(
        name=name,
        error=math.hypot(*(tensor.error for tensor in tensors)),
        norm=math.hypot(*(tensor.norm for tensor in tensors)),
        largest=max(tensor.largest for tensor in tensors),
        tensors=len(tensors),
        exact_tensors=sum(tensor.exact for tensor in tensors),
        worst=max(tensors, key=lambda tensor: tensor.relative).name,
    )


def _predictions(
    original: SourceWeights,
    converted: ConvertedWeights,
    ids: np.ndarray,
    following: np.ndarray,
    progress: _ByteCount,
) -> Predictions:
    networks = Network(original), Network(converted)
    hidden = [network.hidden(ids, lambda: progress.add(original.layer_bytes)) for network in networks]
    logits = _logits(networks, hidden, original.shapes["lm_head.weight"], progress)
    with np.errstate(over="ignore", invalid="ignore"):
        kl, losses, tops = _divergence(logits, following.ravel())
        source_perplexity, model_perplexity = np.exp(losses.mean(axis=0)).tolist()
    if not all(map(math.isfinite, (kl.sum(), source_perplexity, model_perplexity))):
        raise GptOssError("the logits are not finite numbers, or absurdly large: the source or the model is corrupt")
    return Predictions(
        tokens=len(kl),
        kl_mean=float(kl.mean()),
        kl_p99=float(np.percentile(kl, 99)),
        source_perplexity=source_perplexity,
        model_perplexity=model_perplexity,
        same_top=float((tops[:, 0] == tops[:, 1]).mean()),
    )


def _logits(
    networks: tuple[Network, Network], hidden: list[np.ndarray], head: tuple[int, ...], progress: _ByteCount
) -> Iterator[tuple[slice, np.ndarray]]:
    """The vocabulary in chunks, and each one's logits by both, float32 [tokens, 2, chunk]."""
    for chunk in _chunks(head):
        each = [network.logits(x, chunk) for network, x in zip(networks, hidden, strict=True)]
        yield chunk, np.stack(each, axis=1)
        progress.add(8 * each[0].shape[1] * head[1])


def _divergence(
    logits: Iterator[tuple[slice, np.ndarray]], following: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compare predictions by logits that arrive in chunks of the vocabulary. Returns the divergence of each token
    [tokens], and of both networks [tokens, 2]: the negative log probability of the following token, and the likeliest
    token."""
    known = np.empty((len(following), 2))  # the following token's logits

    def parts() -> Iterator[np.ndarray]:
        for chunk, part in logits:
            inside = np.flatnonzero((chunk.start <= following) & (following < chunk.stop))
            known[inside] = part[inside, :, following[inside] - chunk.start]
            yield part

    kl, log_total, tops = kl_divergence(parts(), in_parallel)
    return kl, log_total - known, tops
