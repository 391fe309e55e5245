"""How far a converted folder is from its source: the error of each tensor, and what a text makes of both networks.

Both are computed in FP32 from what is stored, a matrix at a time (`fp32`); so what differs is the conversion's doing
alone. Knows nothing of recipes: any folder that MLX-LM would load can be compared.
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
from gptoss_mlx.model.checkpoint import CheckpointError
from gptoss_mlx.progress import OnProgress, Progress, no_progress

from .arrays import in_pieces
from .inspection import ORDER, family_of
from .reference_network import ConvertedWeights, Network, SourceWeights, in_windows, windows
from .sources import Source

NAME = "fidelity.json"  # in a folder that was compared when it was made
TOKENS = 1024
PIECE = 2**23  # values of a tensor, or of the head, that are decoded at a time: 32 MB in FP32
TINY = 1e-30  # a norm for tensors of zeros


@dataclass(frozen=True)
class Difference:
    """Between a tensor as it is stored and as it was in the source, or between several of a family."""

    name: str
    error: float
    """The norm of the difference."""
    norm: float
    """That of the source."""
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
class FamilyDifference(Difference):
    tensors: int
    exact_tensors: int
    worst: str
    """The tensor with the largest relative error."""


@dataclass(frozen=True)
class Predictions:
    """Of the token that follows each token of a text, by the source and by the model, in natural logarithms."""

    tokens: int
    kl_mean: float
    """Of the Kullback-Leibler divergence of the model from the source, nats for each token."""
    kl_p99: float
    """That of the one token in a hundred that suffers most."""
    source_perplexity: float
    model_perplexity: float
    same_top: float
    """The share of tokens behind which both find the same token the likeliest."""


@dataclass(frozen=True)
class Fidelity:
    predictions: Predictions
    tensors: list[Difference]

    @property
    def families(self) -> list[FamilyDifference]:
        members: dict[str, list[Difference]] = {family: [] for family in ORDER}
        for tensor in self.tensors:
            members[family_of(tensor.name)].append(tensor)
        return [_family(name, group) for name, group in members.items()]

    def as_dict(self) -> dict[str, Any]:
        return {
            **asdict(self.predictions),
            "families": [family.as_dict() for family in self.families],
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

    Memory is a few matrices in FP32 and a few activations of all tokens, whatever the size of the model.
    Raises GptOssError for a folder that is not a conversion of the source, and for a text of less than two tokens.
    """
    original, converted = SourceWeights(source), ConvertedWeights(folder)
    _check_conversion(original, converted, f"{folder} is not a conversion of {source.folder}")
    ids, following = windows(source, text, tokens)
    progress = _Progress(original, on_progress)
    tensors = [_difference(name, original, converted, progress) for name in original.shapes]
    return Fidelity(_predictions(original, converted, ids, following, progress), tensors)


def predictions(source: Source, folder: Path, ids: np.ndarray) -> Predictions:
    """The end-to-end half of a comparison, on these token ids. Raises GptOssError."""
    original, converted = SourceWeights(source), ConvertedWeights(folder)
    return _predictions(original, converted, *in_windows(ids), _Progress(original, no_progress))


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


class _Progress:
    """Counts the bytes in FP32 of what has been gone through: every tensor once, layers and head in both networks."""

    def __init__(self, weights: SourceWeights, report: OnProgress):
        sizes = {name: 4 * math.prod(shape) for name, shape in weights.shapes.items()}
        layers = weights.config.num_layers * weights.layer_bytes
        self._total = sum(sizes.values()) + 2 * (layers + sizes["lm_head.weight"])
        self._done, self._report = 0, report

    def __call__(self, stage: str, size: int) -> None:
        self._done += size
        self._report(Progress(stage, self._done, self._total))


def _pieces(shape: tuple[int, ...]) -> Iterator[slice]:
    """A tensor's first dimension in stretches of about PIECE values."""
    step = max(1, PIECE * shape[0] // math.prod(shape))
    return (slice(start, start + step) for start in range(0, shape[0], step))


def _difference(name: str, original: SourceWeights, converted: ConvertedWeights, progress: _Progress) -> Difference:
    error = norm = largest = 0.0
    for piece in _pieces(original.shapes[name]):
        right, stored = original.values(name, piece), converted.values(name, piece)
        sums = in_pieces(_sums, right.reshape(-1, right.shape[-1]), stored.reshape(-1, right.shape[-1]))
        error, norm, largest = error + sums[0].sum(), norm + sums[1].sum(), max(largest, sums[2].max())
        progress("tensors", right.nbytes)
    if not math.isfinite(error):
        folder = (converted if math.isfinite(norm) else original).folder
        raise CheckpointError(f"{folder}: {name!r} has values that are not finite numbers: the checkpoint is corrupt")
    return Difference(name, math.sqrt(error), math.sqrt(norm), float(largest))


@np.errstate(over="ignore", invalid="ignore")
def _sums(right: np.ndarray, stored: np.ndarray) -> tuple[np.ndarray, ...]:
    """Rows -> of each the squared error, the squared norm and the largest error, float64 [rows]."""
    difference = stored - right
    squared = (np.einsum("ri,ri->r", x, x, dtype=np.float64) for x in (difference, right))
    return (*squared, np.maximum(difference.max(axis=1), -difference.min(axis=1)).astype(np.float64))


def _family(name: str, tensors: list[Difference]) -> FamilyDifference:
    return FamilyDifference(
        name=name,
        error=math.hypot(*(tensor.error for tensor in tensors)),
        norm=math.hypot(*(tensor.norm for tensor in tensors)),
        largest=max(tensor.largest for tensor in tensors),
        tensors=len(tensors),
        exact_tensors=sum(tensor.exact for tensor in tensors),
        worst=max(tensors, key=lambda tensor: tensor.relative).name,
    )


def _predictions(
    original: SourceWeights, converted: ConvertedWeights, ids: np.ndarray, following: np.ndarray, progress: _Progress
) -> Predictions:
    networks = Network(original), Network(converted)
    hidden = [network.hidden(ids, lambda: progress("layers", original.layer_bytes)) for network in networks]
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
    networks: tuple[Network, Network], hidden: list[np.ndarray], head: tuple[int, int], progress: _Progress
) -> Iterator[tuple[slice, np.ndarray]]:
    """The vocabulary in stretches, and each one's logits by both, float32 [tokens, 2, stretch]."""
    for stretch in _pieces(head):
        each = [network.logits(x, stretch) for network, x in zip(networks, hidden, strict=True)]
        yield stretch, np.stack(each, axis=1)
        progress("head", 8 * each[0].shape[1] * head[1])


def _divergence(
    logits: Iterator[tuple[slice, np.ndarray]], following: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each token the divergence [tokens]; and by both, [tokens, 2], the negative logarithm of the following token's
    probability, and the likeliest token."""
    known = np.empty((len(following), 2))  # the following token's logits

    def parts() -> Iterator[np.ndarray]:
        for stretch, part in logits:
            inside = np.flatnonzero((stretch.start <= following) & (following < stretch.stop))
            known[inside] = part[inside, :, following[inside] - stretch.start]
            yield part

    kl, log_total, tops = kl_divergence(parts(), in_pieces)
    return kl, log_total - known, tops
