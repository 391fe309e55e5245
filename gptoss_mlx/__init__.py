"""gpt-oss on the machine that you own: memory-mapped, offline, inside a stated budget.

>>> from gptoss_mlx import load
>>> model = load("folder made by gptoss-mlx convert")
>>> logits = model(mx.array([ids]))            # [1, L, vocabulary]
>>> for token in model.generate(ids): ...      # sampled ids, one by one
"""

from typing import TYPE_CHECKING

from .errors import GptOssError

if TYPE_CHECKING:
    from .chat.session import Session
    from .engine.generate import Model, load
    from .engine.sampling import Sampling

__all__ = ["GptOssError", "Model", "Sampling", "Session", "load"]

_HOME = {
    "Model": "engine.generate",
    "load": "engine.generate",
    "Sampling": "engine.sampling",
    "Session": "chat.session",
}


def __getattr__(name: str) -> object:
    """Import MLX only when something that needs it is asked for: the command line starts without it."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOME[name]}", __name__), name)
