"""How much each input of a linear map matters on a text: the weights of a quantization's squared errors.

An error in column i of a weight is multiplied by input i, so what it does to the output is in proportion to the mean
square of that input. Knows nothing about how weights are quantized.
"""

from __future__ import annotations

import numpy as np

from gptoss_mlx.errors import GptOssError
from gptoss_mlx.progress import OnProgress, Progress, no_progress

from .reference_network import Network, SourceWeights, windows
from .sources import Source

# An expert counts as if it had also seen so many tokens whose mean squares are those over all experts: one that the
# text hardly asks gets the mean, one that it asks often its own.
SHARED_TOKENS = 32
FLOOR = 0.03  # of the mean over all inputs, added to each: an input that the text never uses is not free
TINY = 1e-12  # where all are zero


def importance(source: Source, text: str, tokens: int, on_progress: OnProgress = no_progress) -> dict[str, np.ndarray]:
    """Run the source on at most `tokens` tokens of a text; returns the mean square of each input of each linear map.

    By module, float32 and positive: [inputs], and [experts, inputs] for the projections of experts. The embedding has
    no inputs, and is not among them. Raises GptOssError.
    """
    weights = SourceWeights(source)
    config = weights.config
    sums: dict[str, np.ndarray] = {}  # of squares, float64 [experts, inputs], and [1, inputs] for other maps
    counts: dict[str, np.ndarray] = {}  # of tokens, [experts, 1]
    layers_done = 0

    def add(module: str, expert: int | None, x: np.ndarray) -> None:
        rows, row = (1, 0) if expert is None else (config.num_experts, expert)
        sums.setdefault(module, np.zeros((rows, x.shape[1])))[row] += np.einsum("ti,ti->i", x, x)
        counts.setdefault(module, np.zeros((rows, 1)))[row] += len(x)

    def layer_done() -> None:
        nonlocal layers_done
        layers_done += 1
        done, total = (count * weights.layer_bytes for count in (layers_done, config.num_layers))
        on_progress(Progress("calibrate", done, total))

    ids, _ = windows(source, text, tokens)
    add("lm_head", None, Network(weights, add).hidden(ids, layer_done))
    means = {module: _means(total, counts[module]) for module, total in sums.items()}
    if not all(np.isfinite(mean).all() for mean in means.values()):
        raise GptOssError(f"{source.folder} computes values that are not finite numbers: it is corrupt")
    return {module: mean if ".experts." in module else mean[0] for module, mean in means.items()}


def _means(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Sums of squares [experts, inputs] over counts [experts, 1] of tokens -> float32 [experts, inputs], positive."""
    overall = sums.sum(axis=0) / counts.sum()
    means = (sums + SHARED_TOKENS * overall) / (counts + SHARED_TOKENS)
    return np.maximum(means + FLOOR * means.mean(axis=1, keepdims=True), TINY).astype(np.float32)
