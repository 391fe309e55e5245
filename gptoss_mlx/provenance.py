"""`provenance.json` in a converted folder: the source, the tool and the recipe of the conversion. Knows its name, and
leaves the check of each entry to its readers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .errors import GptOssError
from .untrusted import lexists, read_json

PROVENANCE = "provenance.json"
RANDOM_WEIGHTS = "random weights"  # the source of a model without one


def provenance_of(folder: Path) -> dict[str, Any] | None:
    """The object in provenance.json, with entries not checked; None if there is no such file. Raises GptOssError."""
    path = folder / PROVENANCE
    return json_object(path, read_json(path)) if lexists(path) else None


def recipe_and_source(folder: Path) -> tuple[str | None, str | None]:
    """The recipe of a folder and the id of its source; None where it does not say. Raises GptOssError."""
    made = provenance_of(folder) or {}
    recipe, source = made.get("recipe"), made.get("source")
    source_id = source.get("id") if isinstance(source, dict) else None
    return recipe if isinstance(recipe, str) else None, source_id if isinstance(source_id, str) else None


def json_object(path: Path, data: Any) -> dict[str, Any]:
    """The value of a JSON file, if it is an object. Raises GptOssError."""
    if not isinstance(data, dict):
        raise GptOssError(f"{path} is damaged: not a JSON object")
    return data
