"""Which recipe fits a machine: the most faithful one with which the whole model stays in memory, and why.

Knows which recipes are chosen from; what a model takes with each is the memory plan's.
"""

from __future__ import annotations

from collections.abc import Callable

from gptoss_mlx.memory.devices import Device
from gptoss_mlx.memory.estimate import MemoryEstimate, ModelHeaders
from gptoss_mlx.memory.plan import Candidate, undiminished
from gptoss_mlx.memory.system import size_text

from .recipes import DIVERGENCE, RECIPES, Recipe

CONTEXT = 16_384  # tokens that have to fit beside the weights
# From the most faithful to the smallest. Not among them: mxfp4-bf16, because mxfp4-q8 can hardly be told from it, and
# decodes faster by a half; mxfp4-q4-small, which saves 1 % of mxfp4-q4; q4, which is for other runtimes.
CHOICES = ("mxfp4-q8", "mxfp4-mixed", "mxfp4-q4")


def choose(
    headers: Callable[[str], ModelHeaders], device: Device | None = None, *, begun: str | None = None
) -> tuple[Recipe, str]:
    """The recipe that fits, and the reason in a line. `headers` are those of the folder that a recipe of a name makes.

    `begun` is the recipe of an interrupted conversion, which goes on with it. `device` is this machine by default.
    Raises ConvertError.
    """
    if begun is not None and begun in RECIPES:
        return RECIPES[begun], f"recipe {begun}, with which this conversion began"
    device = device or Device.here()
    too_large: list[str] = []
    for name in CHOICES:
        sizes = MemoryEstimate(headers(name))
        context = min(CONTEXT, sizes.config.max_context)
        needed = undiminished(sizes, device, context)
        takes = _takes(needed, device)
        if not any(needed.shortfall(device)):
            beside = "".join(f"; {larger}" for larger in too_large)
            why = (
                "the most faithful in 8 bits or less that keeps everything in memory"
                f" with {context:,} tokens ({name} takes {takes}{beside})"
            )
            break
        too_large.append(f"{name} takes {takes}")
    else:
        why = f"the smallest to choose from: with {context:,} tokens even it takes {takes}"
    return RECIPES[name], f"recipe {name}, {why}; KL {DIVERGENCE[name]:.4f} from the source, measured on the demo model"


def _takes(needed: Candidate, device: Device) -> str:
    """What is needed, of what there is: on the GPU where that is what lacks, or what there is least of."""
    if device.gpu is not None and needed.bytes <= device.memory:
        return f"{size_text(needed.gpu_bytes)} of {size_text(device.gpu)} on the GPU"
    return f"{size_text(needed.bytes)} of {size_text(device.memory)}"
