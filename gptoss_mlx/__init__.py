"""gpt-oss on the machine that you own: memory-mapped, offline, inside a stated budget.

>>> from gptoss_mlx import Session, generate, load
>>> model = load("gpt-oss-20b", memory="16GB")       # or a folder that `gptoss-mlx convert` made
>>> generate(model, "What is the capital of Italy?")
>>> for event in Session(model).send("Hello"): ...    # reasoning, content, tool calls
>>> model(mx.array([model.tokenizer.encode("Hello")]))  # logits [1, L, vocabulary]

What stands in `__all__` is imported when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from .errors import GptOssError

if TYPE_CHECKING:
    from gptoss_convert import convert

    from .chat.ask import generate, stream_generate
    from .chat.session import Session
    from .chat.turn import Dropped, Thought, ToolResult, TurnStats
    from .engine.generate import ContextFull, Model, load
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
    "KVCache",
    "MemoryPlan",
    "Message",
    "Model",
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


def __getattr__(name: str) -> object:
    """Import MLX only when something that needs it is asked for: the command line starts without it."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE_OF])
