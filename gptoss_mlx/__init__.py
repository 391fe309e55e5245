"""gpt-oss on the machine that you own: memory-mapped, offline, inside a stated budget.

>>> from gptoss_mlx import Session, generate, load
>>> model = load("gpt-oss-20b", memory="16GB")       # or a folder that `gptoss-mlx convert` made
>>> generate(model, "What is the capital of Italy?")
>>> for event in Session(model).send("Hello"): ...    # reasoning, content, tool calls
>>> model(mx.array([model.tokenizer.encode("Hello")]))  # logits [1, L, vocabulary]

What stands in `__all__` is imported when it is first asked for.
"""

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING

from .errors import GptOssError

if TYPE_CHECKING:
    from gptoss_convert import convert

    from .chat.ask import generate, stream_generate
    from .chat.session import Session
    from .chat.turn import Dropped, Thought, ToolResult, TurnStats
    from .engine.generate import ContextFull, Model, load
    from .engine.mlx_errors import GpuFailed, OutOfMemory
    from .engine.sampling import Sampling
    from .engine.tokenizer import Tokenizer
    from .harmony.messages import Message, Tool
    from .harmony.parse import Content, Preamble, Reasoning, ToolCall
    from .memory.devices import Device
    from .memory.plan import BudgetTooSmall, MemoryPlan, make_plan
    from .model.kv_cache import KVCache
    from .tools.toolbox import Function

__all__ = [
    "BudgetTooSmall",
    "Content",
    "ContextFull",
    "Device",
    "Dropped",
    "Function",
    "GptOssError",
    "GpuFailed",
    "KVCache",
    "MemoryPlan",
    "Message",
    "Model",
    "OutOfMemory",
    "Preamble",
    "Reasoning",
    "Sampling",
    "Session",
    "Thought",
    "Tokenizer",
    "Tool",
    "ToolCall",
    "ToolResult",
    "TurnStats",
    "convert",
    "generate",
    "load",
    "make_plan",
    "stream_generate",
]

_EXPORTS = {
    "gptoss_convert": ("convert",),
    "gptoss_mlx.chat.ask": ("generate", "stream_generate"),
    "gptoss_mlx.chat.session": ("Session",),
    "gptoss_mlx.chat.turn": ("Dropped", "Thought", "ToolResult", "TurnStats"),
    "gptoss_mlx.engine.generate": ("ContextFull", "Model", "load"),
    "gptoss_mlx.engine.mlx_errors": ("GpuFailed", "OutOfMemory"),
    "gptoss_mlx.engine.sampling": ("Sampling",),
    "gptoss_mlx.engine.tokenizer": ("Tokenizer",),
    "gptoss_mlx.harmony.messages": ("Message", "Tool"),
    "gptoss_mlx.harmony.parse": ("Content", "Preamble", "Reasoning", "ToolCall"),
    "gptoss_mlx.memory.devices": ("Device",),
    "gptoss_mlx.memory.plan": ("BudgetTooSmall", "MemoryPlan", "make_plan"),
    "gptoss_mlx.model.kv_cache": ("KVCache",),
    "gptoss_mlx.tools.toolbox": ("Function",),
}
_MODULE_OF = {name: module for module, names in _EXPORTS.items() for name in names}


# Operations, and Mi elements of distinct arrays (MLX calls them MB), after which MLX commits a Metal command buffer. It
# reads them once, when it first touches the GPU. Each commit takes some 20 us (ml-explore/mlx, issue 4521). With MLX's
# own 40 and 40, a token of gpt-oss-20b takes about 50, because one projection of a layer's experts has 39.6 Mi
# elements; with these it takes about 25. Not far more: MLX is up to 10 commits ahead of the GPU, and where that is a
# whole token, the KV cache is still in use when the next key comes, and is copied. MLX_METAL_FAST_SYNCH stays off: it
# can lock the GPU until the machine is restarted (issues 3142 and 3830).
COMMIT_AFTER = {"MLX_MAX_OPS_PER_BUFFER": "120", "MLX_MAX_MB_PER_BUFFER": "100"}
if sys.platform == "darwin":  # CUDA's graphs have the same variables, and other measures
    for _name, _value in COMMIT_AFTER.items():
        os.environ.setdefault(_name, _value)


def __getattr__(name: str) -> object:
    """Import MLX only when something that needs it is asked for: the command line starts without it."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE_OF])
