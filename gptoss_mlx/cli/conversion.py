"""A conversion as commands run it: with progress, notes, and its report as a table."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import printable
from ..memory.system import size_text
from ..model.installed import make_models_folder
from ..model.model_store import demo_folder, models_folder, partial_folder

if TYPE_CHECKING:
    from gptoss_convert import ConversionReport


def convert_with_progress(source: str, dest: Path, **options: Any) -> ConversionReport:
    """`gptoss_convert.convert` with a progress bar, or a line every tenth where there is no terminal."""
    from gptoss_convert import convert as run

    from ..terminal.progress_bars import conversion_progress

    if dest.parent == models_folder():
        make_models_folder()
    try:
        with conversion_progress() as show:
            return run(source, dest, on_progress=show, on_note=_note, **options)
    except KeyboardInterrupt:
        if (partial := partial_folder(dest)).exists():
            saved = f"progress is saved: the same command resumes; to discard it, remove {partial}"
            click.echo(printable(saved), err=True)
        raise


def _note(text: str) -> None:
    click.echo(printable(f"note: {text}"), err=True)


def convert_demo() -> ConversionReport:
    """The embedded model, converted anew."""
    from ..demo import CHECKPOINT

    shutil.rmtree(demo_folder(), ignore_errors=True)
    return convert_with_progress(str(CHECKPOINT), demo_folder())


def print_report(report: ConversionReport) -> None:
    from rich.table import Table
    from rich.text import Text

    from ..tables import print_table

    table = Table("recipe", "source", "converted", "bits per weight", "time", "peak memory")
    peak = report.peak_anonymous_bytes
    table.add_row(
        Text(printable(report.recipe)),
        size_text(report.source_bytes),
        size_text(report.output_bytes),
        f"{report.bits_per_weight:.2f}",
        f"{report.seconds:.1f} s",
        "unknown" if peak is None else size_text(peak),
    )
    print_table(table)
