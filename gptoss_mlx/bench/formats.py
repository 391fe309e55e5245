"""Figures as text for other programs and for people elsewhere: JSON, CSV, Markdown, and what goes into an issue.

JSON holds everything, in the form that `baseline` reads. CSV has a row for each speed. Markdown is GitHub's. Each ends
with a line break.
"""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from ..errors import printable
from . import tables
from .figures import Figures, Speed
from .tables import TextTable

# What may be markup in a line of GitHub's Markdown.
MARKUP = re.compile(r"[\\`*_\[\]<>&|~$]")

# Of the whole run, repeated in each row, so that the files of several runs can be put together.
RUN_COLUMNS: dict[str, Callable[[Figures], Any]] = {
    "date": lambda figures: figures.date,
    "system": lambda figures: figures.machine.system,
    "processor": lambda figures: figures.machine.processor,
    "cores": lambda figures: figures.machine.cores,
    "machine_memory_bytes": lambda figures: figures.machine.memory,
    "device": lambda figures: figures.machine.device,
    "kernels": lambda figures: figures.machine.kernels,
    "threads": lambda figures: figures.setup.threads,
    "versions": lambda figures: ", ".join(f"{name} {version}" for name, version in figures.machine.versions.items()),
    "commit": lambda figures: figures.machine.commit,
    "load_average": lambda figures: figures.conditions.load_average,
    "others_share": lambda figures: figures.conditions.others,
    "stolen_share": lambda figures: figures.conditions.stolen,
    "throttled_times": lambda figures: figures.conditions.throttled,
    "clock_share": lambda figures: figures.conditions.clock,
    "power": lambda figures: figures.conditions.power,
    "model": lambda figures: figures.model.name,
    "recipe": lambda figures: figures.model.recipe,
    "random_weights": lambda figures: int(figures.model.random_weights),
    "layers": lambda figures: figures.model.layers,
    "model_bytes": lambda figures: figures.model.bytes,
    "bits_per_weight": lambda figures: figures.model.bits_per_weight,
    "context_tokens": lambda figures: figures.setup.context,
    "kv_bits": lambda figures: figures.setup.kv_bits,
    "prefill_chunk_tokens": lambda figures: figures.setup.prefill_chunk,
    "expert_slots": lambda figures: figures.setup.expert_slots,
    "energy": lambda figures: figures.setup.energy,
    "prompts": lambda figures: figures.setup.prompts,
    "peak_memory_bytes": lambda figures: figures.memory.peak,
    "finished": lambda figures: int(figures.finished),
}
SPEED_COLUMNS: dict[str, Callable[[Speed], Any]] = {
    "kind": lambda speed: speed.kind,
    "tokens": lambda speed: speed.tokens,
    "depth_tokens": lambda speed: speed.depth,
    "runs": lambda speed: speed.tokens_per_second.runs,
    "median_tokens_per_second": lambda speed: speed.tokens_per_second.median,
    "least_tokens_per_second": lambda speed: speed.tokens_per_second.least,
    "most_tokens_per_second": lambda speed: speed.tokens_per_second.most,
    "limit_tokens_per_second": lambda speed: speed.limit,
    "share_of_limit": lambda speed: speed.share,
    "work_bytes": lambda speed: speed.work.bytes,
    "work_matrix_operations": lambda speed: speed.work.matrix_operations,
    "work_vector_operations": lambda speed: speed.work.vector_operations,
    "bandwidth_bytes_per_second": lambda speed: speed.rates.bandwidth,
    "matrix_operations_per_second": lambda speed: speed.rates.matrix,
    "vector_operations_per_second": lambda speed: speed.rates.vector,
    "token_p50_seconds": lambda speed: speed.token_seconds and speed.token_seconds.p50,
    "token_p90_seconds": lambda speed: speed.token_seconds and speed.token_seconds.p90,
    "token_p99_seconds": lambda speed: speed.token_seconds and speed.token_seconds.p99,
    "token_most_seconds": lambda speed: speed.token_seconds and speed.token_seconds.most,
    "experts_needed": lambda speed: speed.experts and speed.experts.needed,
    "experts_missed": lambda speed: speed.experts and speed.experts.missed,
    "experts_read_bytes": lambda speed: speed.experts and speed.experts.bytes_read,
    "experts_waiting_seconds": lambda speed: speed.experts and speed.experts.stall_seconds,
    "joules_per_token": lambda speed: speed.joules_per_token,
}


def as_json(figures: Figures) -> str:
    return json.dumps(figures.as_dict(), indent=1) + "\n"


def as_csv(figures: Figures) -> str:
    """A line of names, with their units, and one for each speed; empty cells are what is not known."""
    run = [of(figures) for of in RUN_COLUMNS.values()]
    rows = [run + [of(speed) for of in SPEED_COLUMNS.values()] for speed in figures.speeds]
    return csv_text([[*RUN_COLUMNS, *SPEED_COLUMNS], *rows])


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(map(_cell, row) for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    """Text on one line that no spreadsheet takes for a formula."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def as_markdown(figures: Figures) -> str:
    made = (
        tables.machine(figures),
        tables.settings(figures),
        tables.speeds(figures),
        tables.tokens(figures),
        tables.limits(figures),
        tables.experts(figures),
        tables.start(figures),
        tables.memory(figures),
        tables.profile(figures),
    )
    title, *_ = tables.heading(figures)
    parts = [f"## {_escaped(title)}"]
    parts += markdown_items(tables.warnings(figures))
    parts += [markdown_table(table) for table in made if table]
    parts.append(f"### Command\n\n{_code_block(printable(figures.command))}")
    return "\n\n".join(parts) + "\n"


def markdown_items(lines: Iterable[str]) -> list[str]:
    return [f"- {_escaped(line)}" for line in lines]


def markdown_table(table: TextTable) -> str:
    rule = ["---", *("---:" if table.numbers else "---" for _ in table.columns[1:])]
    rows = [table.columns, *table.rows]
    names, *lines = [f"| {' | '.join(map(_escaped, row))} |" for row in rows]
    return "\n".join([f"### {_escaped(table.title)}", "", names, f"| {' | '.join(rule)} |", *lines])


def submission(figures: Figures) -> str:
    """All of it for an issue on GitHub, without a path: Markdown, and the JSON folded away.

    Nothing here knows a user's or a machine's name; of a path in the command only the last part stays.
    """
    public = replace(figures, command=_without_folders(figures.command))
    folded = f"<details><summary>JSON</summary>\n\n{_code_block(as_json(public), 'json')}\n\n</details>"
    return f"{as_markdown(public)}\n{folded}\n"


def _without_folders(command: str) -> str:
    try:
        arguments = shlex.split(command)
    except ValueError:  # nobody could run it
        return ""
    return shlex.join(map(_last_part, arguments))


def _last_part(argument: str) -> str:
    option, equals, value = argument.partition("=") if argument.startswith("-") else ("", "", argument)
    return option + equals + value.rstrip("/").rpartition("/")[2]


def _escaped(text: str) -> str:
    return MARKUP.sub(r"\\\g<0>", printable(text))


def _code_block(text: str, language: str = "") -> str:
    """With a fence that is longer than any in the text."""
    fence = "`" * max([3, *(len(ticks) + 1 for ticks in re.findall("`+", text))])
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
