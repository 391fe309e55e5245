"""Results and comparisons as text for other programs and for people elsewhere: JSON, CSV, Markdown, and a report for an
issue.

JSON holds everything, in the form that `baseline` reads. CSV has a row for each speed, and of a comparison for each
pair of runs at each point; its columns are called as what they hold is in the JSON. Markdown is GitHub's. Each ends
with a line break.
"""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import replace
from functools import reduce
from typing import Any

from ..errors import printable
from . import comparison, tables
from .comparison import Comparison
from .results import Results
from .tables import Report, TextTable

# What may be markup in a line of GitHub's Markdown.
MARKUP = re.compile(r"[\\`*_\[\]<>&|~$]")

# What is true of a whole run is in each row, so that the files of several runs can be put together.
SPEED_COLUMNS = """
    date finished machine.system machine.processor machine.cores machine.memory machine.device machine.kernels
    machine.versions machine.commit conditions.load_average conditions.others conditions.stolen conditions.throttled
    conditions.clock conditions.power conditions.gpu_slowed model.name model.recipe model.random_weights model.layers
    model.bytes model.bits_per_weight setup.threads setup.context setup.kv_bits setup.prefill_chunk setup.expert_slots
    setup.cpu_expert_layers setup.energy setup.prompts memory.peak
    kind tokens depth tokens_per_second.runs tokens_per_second.median tokens_per_second.least tokens_per_second.most
    limit_tokens_per_second share_of_limit work.bytes work.matrix_operations work.vector_operations
    rates.bandwidth rates.matrix rates.vector token_seconds.p50 token_seconds.p90 token_seconds.p99 token_seconds.most
    experts.needed experts.missed experts.bytes_read experts.stall_seconds joules_per_token
"""
PAIR_COLUMNS = "kind tokens depth pair ours_tokens_per_second theirs_tokens_per_second ratio peer"


def report_of(found: Results | Comparison) -> Report:
    return comparison.report(found) if isinstance(found, Comparison) else tables.report(found)


def as_json(found: Results | Comparison) -> str:
    return json.dumps(found.as_dict(), indent=1) + "\n"


def as_csv(found: Results | Comparison) -> str:
    """A line of names, and the rows; empty cells are what is not known."""
    names = PAIR_COLUMNS if isinstance(found, Comparison) else SPEED_COLUMNS
    rows = _pairs(found) if isinstance(found, Comparison) else _speeds(found)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([names.split(), *(map(_cell, row) for row in rows)])
    return text.getvalue()


def _speeds(results: Results) -> list[list[Any]]:
    data = results.as_dict()
    return [[_value(data | speed, path) for path in SPEED_COLUMNS.split()] for speed in data["speeds"]]


def _pairs(comparison: Comparison) -> list[list[Any]]:
    return [
        [*speed.point, pair, *values, comparison.peer]
        for speed in comparison.speeds
        for pair, values in enumerate(zip(speed.ours, speed.theirs, speed.ratios, strict=True), 1)
    ]


def _value(data: Mapping[str, Any], path: str) -> Any:
    """The value at the end of a path of names; None where one on the way is."""
    value: Any = reduce(lambda part, name: part and part[name], path.split("."), data)
    if isinstance(value, dict):
        return ", ".join(f"{name} {version}" for name, version in value.items())
    return int(value) if isinstance(value, bool) else value


def _cell(value: Any) -> Any:
    """Text on one line that no spreadsheet takes for a formula."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def as_markdown(found: Results | Comparison) -> str:
    report = report_of(found)
    heading = [f"{'' if index else '## '}{_escaped(line)}" for index, line in enumerate(report.heading)]
    warnings = [f"- {_escaped(line)}" for line in report.warnings]
    command = [f"### Command\n\n{_code_block(printable(report.command))}"] if report.command else []
    return (
        "\n\n".join([*heading, *warnings, *(_table(table) for table in report.tables if table.rows), *command]) + "\n"
    )


def _table(table: TextTable) -> str:
    rule = ["---", *("---:" if table.numbers else "---" for _ in table.columns[1:])]
    names, *lines = [f"| {' | '.join(map(_escaped, row))} |" for row in (table.columns, *table.rows)]
    note = ["", _escaped(table.note)] if table.note else []
    return "\n".join([f"### {_escaped(table.title)}", "", names, f"| {' | '.join(rule)} |", *lines, *note])


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
