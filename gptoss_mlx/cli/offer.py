"""Published models that are not installed: what each recipe would make of them on a device, and which one fits there.

From the published shapes alone: nothing is downloaded. The recipe is chosen by `gptoss_convert.choice`; knows the words
that say what a model takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import free_disk
from ..memory.plan import BudgetTooSmall, MemoryPlan, make_plan
from ..memory.speed import HERE, decode_speeds, decode_text
from ..memory.system import size_text
from ..model.model_store import partial_folder
from .options import ModelOptions

if TYPE_CHECKING:
    from ..memory.devices import Device

READ_TO_MEASURE = 2**27  # bytes, read a few times: half a second on a busy machine, and more than most caches hold


@dataclass(frozen=True)
class Prospect:
    """A folder that a conversion would write."""

    file_bytes: int
    disk_bytes: int
    """Bytes of disk while it is converted from the hub."""
    divergence: float
    """KL divergence of the recipe's predictions from the source's, in nats, on the demo model."""
    plan: MemoryPlan | BudgetTooSmall
    """Its plan, or the reason why there is none."""

    @property
    def fits(self) -> bool:
        """Whether all of it stays in memory."""
        return isinstance(self.plan, MemoryPlan) and self.plan.settings.expert_slots is None


@dataclass(frozen=True)
class Offer:
    """A published model on a device, with what each recipe would make of it."""

    repository: str
    prospects: dict[str, Prospect]
    """By the name of the recipe."""
    recipe: str
    """The name of the recipe that fits there."""
    why: str

    @property
    def chosen(self) -> Prospect:
        return self.prospects[self.recipe]

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the plan of each recipe, or the bytes that it needs at least."""
        recipes: dict[str, dict[str, Any]] = {}
        for name, found in self.prospects.items():
            recipes[name] = {key: getattr(found, key) for key in ("file_bytes", "disk_bytes", "divergence")}
            if isinstance(found.plan, MemoryPlan):
                recipes[name] |= found.plan.as_dict() | {"tokens_per_second": decode_speeds(found.plan)}
            else:
                recipes[name]["needs_at_least"] = found.plan.smallest
        return {"model": self.repository, "recipe": self.recipe, "why": self.why, "recipes": recipes}

    def lines(self, dest: Path) -> Iterator[str]:
        """What it takes here, with the recipe that fits, each in a line that can follow the model's name."""
        found, plan = self.chosen, self.chosen.plan
        free = free_disk(dest)
        room = (
            "" if free >= found.disk_bytes else ": not enough is free; set GPTOSS_MLX_HOME to a folder on another disk"
        )
        yield _memory_text(plan)
        disk, meanwhile = size_text(found.file_bytes), size_text(found.disk_bytes)
        yield f"takes {disk} of disk, and {meanwhile} while it is converted{room}"
        if isinstance(plan, MemoryPlan) and (speed := decode_text(plan)):
            yield speed
        yield self.why


def _memory_text(plan: MemoryPlan | BudgetTooSmall) -> str:
    if isinstance(plan, BudgetTooSmall):
        return f"takes {size_text(plan.smallest)} of memory or more: it does not fit"
    first, last = plan.attempts[0], plan.attempts[-1]
    context = plan.wanted_context or plan.settings.context
    takes = f"takes {size_text(first.bytes)} of memory with {context:,} tokens"
    if plan.settings.expert_slots is not None:
        return f"{takes}: with less it reads from the disk as it runs, and is slower"
    return f"{takes}: it fits" + (f", with {last.what}" if last is not first else "")


def offer(
    repository: str,
    device: Device,
    options: ModelOptions,
    *,
    every: bool = False,
    named: str | None = None,
    begun: str | None = None,
) -> Offer | None:
    """The offer of a published model, with the prospect of the recipe that fits, or of `every` one; None for a model
    whose shape is not known. `named` is the recipe that a person asks for, `begun` that of a conversion that was
    interrupted."""
    from gptoss_convert.choice import choose
    from gptoss_convert.published import LARGEST_SHARD, TOKENIZER_BYTES, published_headers
    from gptoss_convert.recipes import DIVERGENCE, RECIPES

    if (headers := published_headers(repository)) is None:
        return None
    limited = device if options.memory is None else device.within(options.memory)
    if named is None:
        chosen, why = choose(headers, limited, begun=begun)
    else:
        chosen, why = RECIPES[named], f"recipe {named}, as its name says"

    def prospect(name: str) -> Prospect:
        plan: MemoryPlan | BudgetTooSmall
        try:
            plan = make_plan(
                headers(name), device, memory=options.memory, context=options.context, kv_bits=options.kv_bits
            )
        except BudgetTooSmall as error:
            plan = error
        size = headers(name).file_bytes + TOKENIZER_BYTES
        return Prospect(size, size + LARGEST_SHARD, DIVERGENCE[name], plan)

    names = RECIPES if every else (chosen.name,)
    return Offer(repository, {name: prospect(name) for name in names}, chosen.name, why)


def offer_into(dest: Path, repository: str, device: Device, named: str | None = None) -> Offer | None:
    """The offer for a conversion into `dest`, with the context for which recipes are chosen; `named` is the recipe that
    a person asks for."""
    from gptoss_convert.choice import CONTEXT
    from gptoss_convert.journal import recipe_in

    begun = recipe_in(partial_folder(dest))
    return offer(repository, device, ModelOptions(context=CONTEXT), named=named, begun=begun)


def this_machine() -> Device:
    """This machine, with the bandwidth of its memory as it is now."""
    from ..memory.devices import Device

    return with_bandwidth(Device.here())


def with_bandwidth(here: Device) -> Device:
    """This machine as it was looked at, with the bandwidth of its memory as it is now."""
    from ..bench.roofline import measured_bandwidth

    bandwidth = measured_bandwidth(READ_TO_MEASURE)
    return here if bandwidth is None else replace(here, bandwidths={HERE: bandwidth})
