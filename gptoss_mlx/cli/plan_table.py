"""A memory plan as a table, and what each recipe would make of a model that is not installed."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..errors import printable
from ..memory.plan import BudgetTooSmall, MemoryPlan
from ..memory.speed import decode_speeds, decode_text, range_text
from ..memory.system import size_text
from ..tables import print_table
from .offer import Offer, Prospect

LAST = 5  # candidates that are shown, beside the first


def print_plan(plan: MemoryPlan) -> None:
    settings, device = plan.settings, plan.device
    table = Table("part", "memory", "kind", title=Text(printable(f"{plan.model} on {device.name}")))
    for row in plan.rows:
        kind = "mapped" if row.mapped else "anonymous"
        table.add_row(row.name, size_text(row.bytes), f"{kind}, GPU" if row.on_gpu and device.gpu else kind)
    table.add_section()
    table.add_row("total", size_text(plan.total), f"of {size_text(device.memory)}")
    if device.gpu:
        table.add_row("on the GPU", size_text(plan.on_gpu), f"of {size_text(device.gpu)}")
    console = Console()
    print_table(table, console)
    experts = "all" if settings.expert_slots is None else f"{settings.expert_slots} of {plan.experts}"
    console.print(
        f"context {settings.context:,} tokens, {settings.kv_bits}-bit KV cache, {experts} experts in memory,"
        f" prefill in chunks of {settings.prefill_chunk} tokens",
        highlight=False,
    )
    too_large = plan.attempts[:-1]
    for attempt in (*too_large[:1], *too_large[1:][-LAST:]):
        on_gpu = f", {size_text(attempt.gpu_bytes)} on the GPU" if device.gpu else ""
        console.print(f"too large: {attempt.what}: {size_text(attempt.bytes)}{on_gpu}", highlight=False)
    if len(too_large) > 1 + LAST:
        others = len(too_large) - 1 - LAST
        console.print(f"too large: {others} others, which would cost less speed than these", highlight=False)
    if too_large:
        console.print(f"chosen: {plan.attempts[-1].what} (of what fits, it costs the least speed)", highlight=False)
    for line in filter(None, (decode_text(plan), plan.advice)):
        console.print(Text(printable(line)), highlight=False)


def print_offer(offer: Offer) -> None:
    """What each recipe would make of a model, and the plan of the one that fits. Raises BudgetTooSmall."""
    plan = offer.chosen.plan
    if isinstance(plan, BudgetTooSmall):
        raise plan
    title = f"{offer.repository}, not installed, on {plan.device.name}"
    table = Table("recipe", "disk", "memory", "context", "given up", "tokens/s", "KL", title=Text(printable(title)))
    for name, found in offer.prospects.items():
        table.add_row(name, size_text(found.file_bytes), *_cells(found), f"{found.divergence:.4f}")
    console = Console()
    print_table(table, console)
    for line in (offer.why, f"disk: {size_text(offer.chosen.disk_bytes)} while it is converted"):
        console.print(Text(printable(line)), highlight=False)
    print_plan(plan)


def _cells(found: Prospect) -> tuple[str, str, str, str]:
    """Memory, context, what is given up, and speed."""
    plan = found.plan
    if isinstance(plan, BudgetTooSmall):
        return f"at least {size_text(plan.smallest)}", "", "does not fit", ""
    speeds = decode_speeds(plan)
    given_up = plan.attempts[-1].what if len(plan.attempts) > 1 else "nothing"
    return size_text(plan.total), f"{plan.settings.context:,}", given_up, range_text(speeds.values()) if speeds else ""
