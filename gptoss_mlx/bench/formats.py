"""Results and comparisons as text for other programs and for people elsewhere: JSON, CSV, Markdown, and a report for an
issue.

JSON holds everything, in the form that `baseline` reads. CSV has a row for each speed. Markdown is GitHub's. Each ends
with a line break.
"""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

from ..errors import printable
from . import tables
from .comparison import LEGEND, Comparison, differences_table, speeds_table
from .results import Results
from .tables import TextTable

# What may be markup in a line of GitHub's Markdown.
MARKUP = re.compile(r"[\\`*_\[\]<>&|~$]")

# CSV: the name of a column, with its unit, and where its value is. Those of the whole run are repeated in each row, so
# that the files of several runs can be put together.
RUN_COLUMNS = {
    "date": "date",
    "system": "machine.system",
    "processor": "machine.processor",
    "cores": "machine.cores",
    "machine_memory_bytes": "machine.memory",
    "device": "machine.device",
    "kernels": "machine.kernels",
    "threads": "setup.threads",
    "versions": "machine.versions",
    "commit": "machine.commit",
    "load_average": "conditions.load_average",
    "others_share": "conditions.others",
    "stolen_share": "conditions.stolen",
    "throttled_times": "conditions.throttled",
    "clock_share": "conditions.clock",
    "power": "conditions.power",
    "model": "model.name",
    "recipe": "model.recipe",
    "random_weights": "model.random_weights",
    "layers": "model.layers",
    "model_bytes": "model.bytes",
    "bits_per_weight": "model.bits_per_weight",
    "context_tokens": "setup.context",
    "kv_bits": "setup.kv_bits",
    "prefill_chunk_tokens": "setup.prefill_chunk",
    "expert_slots": "setup.expert_slots",
    "energy": "setup.energy",
    "prompts": "setup.prompts",
    "peak_memory_bytes": "memory.peak",
    "finished": "finished",
}
SPEED_COLUMNS = {
    "kind": "kind",
    "tokens": "tokens",
    "depth_tokens": "depth",
    "runs": "tokens_per_second.runs",
    "median_tokens_per_second": "tokens_per_second.median",
    "least_tokens_per_second": "tokens_per_second.least",
    "most_tokens_per_second": "tokens_per_second.most",
    "limit_tokens_per_second": "limit",
    "share_of_limit": "share",
    "work_bytes": "work.bytes",
    "work_matrix_operations": "work.matrix_operations",
    "work_vector_operations": "work.vector_operations",
    "bandwidth_bytes_per_second": "rates.bandwidth",
    "matrix_operations_per_second": "rates.matrix",
    "vector_operations_per_second": "rates.vector",
    "token_p50_seconds": "token_seconds.p50",
    "token_p90_seconds": "token_seconds.p90",
    "token_p99_seconds": "token_seconds.p99",
    "token_most_seconds": "token_seconds.most",
    "experts_needed": "experts.needed",
    "experts_missed": "experts.missed",
    "experts_read_bytes": "experts.bytes_read",
    "experts_waiting_seconds": "experts.stall_seconds",
    "joules_per_token": "joules_per_token",
}


def as_json(results: Results) -> str:
    return json.dumps(results.as_dict(), indent=1) + "\n"


def as_csv(results: Results) -> str:
    """A line of names, and one for each speed; empty cells are what is not known."""
    run = [_value(results, path) for path in RUN_COLUMNS.values()]
    rows = [run + [_value(speed, path) for path in SPEED_COLUMNS.values()] for speed in results.speeds]
    return _csv_text([[*RUN_COLUMNS, *SPEED_COLUMNS], *rows])


def comparison_as_csv(comparison: Comparison) -> str:
    """A line of names, and one for each pair of runs at each point."""
    speed = "tokens_per_second"
    names = ("kind", "tokens", "depth_tokens", "pair", f"our_{speed}", f"their_{speed}", "ratio", "peer")
    rows = [
        (*paired.point, pair, *values, comparison.peer)
        for paired in comparison.speeds
        for pair, values in enumerate(zip(paired.ours, paired.theirs, paired.ratios, strict=True), 1)
    ]
    return _csv_text([names, *rows])


def _value(data: Any, path: str) -> Any:
    """The value at the end of a path of attributes; None where one on the way is."""
    value = reduce(lambda each, name: each and getattr(each, name), path.split("."), data)
    if isinstance(value, dict):
        return ", ".join(f"{name} {version}" for name, version in value.items())
    return int(value) if isinstance(value, bool) else value


def _csv_text(rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(map(_cell, row) for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    """Text on one line that no spreadsheet takes for a formula."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def as_markdown(results: Results) -> str:
    made = (
        tables.machine(results),
        tables.settings(results),
        tables.speeds(results),
        tables.tokens(results),
        tables.limits(results),
        tables.experts(results),
        tables.start(results),
        tables.memory(results),
        tables.profile(results),
    )
    title, *_ = tables.heading(results)
    parts = [f"## {_escaped(title)}", *_items(tables.warnings(results)), *(_table(table) for table in made if table)]
    return "\n\n".join([*parts, f"### Command\n\n{_code_block(printable(results.command))}"]) + "\n"


def comparison_as_markdown(comparison: Comparison) -> str:
    made = tables.machine(comparison.ours), speeds_table(comparison), differences_table(comparison)
    lines = [LEGEND, *tables.warnings(comparison.ours)]
    return "\n\n".join([*map(_table, made), *_items(lines)]) + "\n"


def _items(lines: Iterable[str]) -> list[str]:
    return [f"- {_escaped(line)}" for line in lines]


def _table(table: TextTable) -> str:
    rule = ["---", *("---:" if table.numbers else "---" for _ in table.columns[1:])]
    rows = [table.columns, *table.rows]
    names, *lines = [f"| {' | '.join(map(_escaped, row))} |" for row in rows]
    return "\n".join([f"### {_escaped(table.title)}", "", names, f"| {' | '.join(rule)} |", *lines])


def submission(results: Results) -> str:
    """A report for an issue on GitHub, without a path: Markdown, and the JSON folded away.

    Nothing here knows a user's or a machine's name; of a path in the command only the last part stays.
    """
    public = replace(results, command=_without_folders(results.command))
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
    """A block of code, with a fence that is longer than any in the text."""
    fence = "`" * max([3, *(len(ticks) + 1 for ticks in re.findall("`+", text))])
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
