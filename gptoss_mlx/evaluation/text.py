"""How well a model predicts a text: perplexity, and the divergence of its predictions from those of another model.

A text is cut into windows of n tokens, without overlap and without a token of our own before them; what is left at its
end is not read. Each window is read from an empty context, and those of its second half are predicted that follow
token n // 2: n - 1 - n // 2 of them. That is what llama.cpp's `perplexity -c n` counts, where its GGUF puts no BOS
token first.

Logits of a few positions are held at a time, and reduced in NumPy, so that the device decides nothing but the logits.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from ..engine.divergence import kl_divergence
from ..engine.generate import Model
from ..engine.tokenizer import Tokenizer
from ..errors import GptOssError
from ..files import sync, unlinked
from ..kernels import bus_error
from .journal import writing
from .run import Item, OnRead

MIN_WINDOW = 4
MAX_LOSS = 100.0  # nats for a token; a guess among 201,088 costs 12.2

# The head gets a chunk of a prompt in this many pieces. In gpt-oss the logits of a position
# take 70 times its hidden state, and are here twice; the plan has room for 14 hidden states in FP32 (28 in BF16, on a
# GPU) of each position of a chunk, some of which the kernels keep.
HEAD_PIECES = 64


@dataclass(frozen=True)
class Divergence:
    """How far a model's predictions are from those of a reference, in nats."""

    reference: str
    kl_mean: float
    """The mean Kullback-Leibler divergence: sum p (log p - log q), where p is the reference's."""
    kl_p99: float
    """Its 99th percentile over tokens."""
    same_top: float
    """The share of tokens after which both find the same token the likeliest."""


@dataclass(frozen=True)
class TextResults:
    text: str
    sha256: str
    tokens: int
    """Tokens that were predicted."""
    windows: int
    """Windows that were read."""
    of_windows: int
    """Windows that the text has."""
    window: int
    """Tokens in each."""
    perplexity: float
    standard_error: float | None
    """The perplexity's standard error, from the spread of the tokens' negative log-likelihoods as if they were
    independent; None for one token."""
    divergence: Divergence | None


class LogProbabilities:
    """The logarithms of a reference's predictions in a file, float32 [windows, counted, vocabulary]."""

    name = "reference"

    def __init__(self, path: Path, windows: list[list[int]], vocabulary: int):
        self.path, self._windows = path, windows
        self.shape = len(windows), counted(len(windows[0])), vocabulary
        self.items = [Item(f"reference {index}", len(ids)) for index, ids in enumerate(windows)]
        self.key, self.context = windows, len(windows[0])

    @property
    def nbytes(self) -> int:
        return 4 * math.prod(self.shape)

    @property
    def exists(self) -> bool:
        return self.path.is_file() and self.path.stat().st_size == self.nbytes

    def make(self) -> None:
        """A file of this size, still without contents, in a folder that is there. Raises GptOssError."""
        with writing(self.path), open(self.path, "wb", opener=unlinked) as file:
            file.truncate(self.nbytes)

    @cached_property
    def rows(self) -> np.ndarray:
        """The file, mapped."""
        bus_error.end_in_order()
        return np.memmap(self.path, np.float32, "r", shape=self.shape)

    def measure(self, model: Model, index: int, on_read: OnRead) -> bool:
        """Write the predictions of one window. Raises GptOssError where the disk is full."""
        with writing(self.path), open(self.path, "r+b", opener=unlinked) as file:
            file.seek(index * (self.nbytes // len(self._windows)))
            for _, rows in log_probabilities(model, self._windows[index], on_read):
                file.write(rows.data)
            file.flush()
            sync(file.fileno())
        return True

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


class Text:
    """The windows of a text, and of each what a model makes of its second half."""

    name = "text"

    def __init__(self, source: str, text: str, tokenizer: Tokenizer, *, window: int, max_tokens: int | None = None):
        """At most `max_tokens` tokens of a text from the file `source`. Raises GptOssError where it has too few."""
        ids = tokenizer.encode(text, max_tokens)
        self._source, self._text, self._max_tokens, self._window = source, text, max_tokens, window
        self.windows = windows = cut(ids, window)
        self._reference: tuple[str, LogProbabilities] | None = None
        self.items = [Item(f"text {index}", len(ids)) for index, ids in enumerate(windows)]
        self.key, self.context = windows, len(windows[0])

    def is_encoded_by(self, tokenizer: Tokenizer) -> bool:
        """Whether another tokenizer gives the same ids."""
        return cut(tokenizer.encode(self._text, self._max_tokens), self._window) == self.windows

    def compare_with(self, name: str, predictions: LogProbabilities) -> None:
        """Also measure the divergence from a reference, whose predictions have been written."""
        self._reference = name, predictions

    def measure(self, model: Model, index: int, on_read: OnRead) -> dict[str, list[float]]:
        """For each token that is predicted: its negative log-likelihood, and beside a reference "kl" and "same_top"."""
        ids = self.windows[index]
        first = len(ids) // 2 + 1
        found: dict[str, list[float]] = {"nll": []}
        for at, rows in log_probabilities(model, ids, on_read):
            following = np.array(ids[first + at : first + at + len(rows)])
            found["nll"] += (-rows[np.arange(len(rows)), following]).tolist()
            if self._reference:
                right = self._reference[1].rows[index, at : at + len(rows)]
                found.setdefault("kl", []).extend(kl_of(right, rows))
                found.setdefault("same_top", []).extend((right.argmax(axis=-1) == rows.argmax(axis=-1)).tolist())
        return found

    def results(self, values: dict[int, Any]) -> TextResults | None:
        """Results over the windows that were read; None where there is none."""
        if not values:
            return None
        nll, kl, same_top = (
            np.array([each for index in sorted(values) for each in values[index].get(name, ())])
            for name in ("nll", "kl", "same_top")
        )
        if (loss := float(nll.mean())) > MAX_LOSS:
            raise GptOssError("the logits are absurdly large: the model is corrupt")
        perplexity = math.exp(loss)
        return TextResults(
            text=self._source,
            sha256=hashlib.sha256(self._text.encode()).hexdigest(),
            tokens=len(nll),
            windows=len(values),
            of_windows=len(self.windows),
            window=len(self.windows[0]),
            perplexity=perplexity,
            standard_error=perplexity * float(nll.std(ddof=1)) / math.sqrt(len(nll)) if len(nll) > 1 else None,
            divergence=self._reference
            and Divergence(self._reference[0], float(kl.mean()), float(np.percentile(kl, 99)), float(same_top.mean())),
        )


def cut(ids: list[int], window: int) -> list[list[int]]:
    """Token ids -> windows of `window` each, or one of all where there are fewer. Raises GptOssError for too few."""
    if len(ids) < MIN_WINDOW:
        raise GptOssError(f"the text has {len(ids)} tokens: it takes at least {MIN_WINDOW}")
    length = min(window, len(ids))
    return [ids[start : start + length] for start in range(0, len(ids) - length + 1, length)]


def counted(length: int) -> int:
    """How many tokens of a window are predicted."""
    return length - 1 - length // 2


def log_probabilities(model: Model, ids: Sequence[int], on_read: OnRead) -> Iterator[tuple[int, np.ndarray]]:
    """The logarithms of a model's predictions of a window's second half, float32 [some, vocabulary] at a time, with how
    many came before. Raises GptOssError where the logits are no numbers."""
    cache, chunk = model.make_cache(), model.settings.prefill_chunk
    piece = max(chunk // HEAD_PIECES, 1)
    first, end = len(ids) // 2, len(ids) - 1  # what follows the last token is not known
    for start in range(0, end, chunk):
        hidden = model.network.hidden(mx.array([ids[start : min(start + chunk, end)]]), cache)
        mx.eval(hidden, cache.arrays())
        mx.clear_cache()  # what the layers had is for the logits now, in MLX and in NumPy
        for position in range(max(first - start, 0), hidden.shape[1], piece):
            logits = model.network.logits(hidden[:, position : position + piece])[0]
            yield start + position - first, log_softmax(np.array(logits.astype(mx.float32)))
        on_read(start + hidden.shape[1])


@np.errstate(invalid="ignore")
def log_softmax(rows: np.ndarray) -> np.ndarray:
    """float32 [n, vocabulary] -> the same, in place. Raises GptOssError."""
    for logits in rows:
        logits -= logits.max()
        total = np.exp(logits).sum(dtype=np.float64)
        if not np.isfinite([total, logits.min()]).all():
            raise GptOssError("the logits are not finite numbers: the model is corrupt")
        logits -= np.float32(np.log(total))
    return rows


def kl_of(right: np.ndarray, found: np.ndarray) -> list[float]:
    """The divergence of each row, from logarithms of probabilities, float32 [n, vocabulary]; a row at a time, to save
    memory."""
    pairs = zip(right, found, strict=True)
    return [float(kl_divergence([np.stack(pair)[None]])[0].item()) for pair in pairs]
