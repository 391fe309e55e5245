"""MLX-LM's own network on a folder: an oracle for logits, but for one thing that it rounds."""

import math

import mlx.core as mx
import pytest


def mlx_lm_model(folder):
    """As MLX-LM loads the folder, with the published, unrounded YaRN range."""
    from mlx_lm.utils import load_model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(math, "floor", lambda value: value)
        patch.setattr(math, "ceil", lambda value: value)
        model, _ = load_model(folder)
    model.set_dtype(mx.float32)
    return model
