"""Whether a text is JSON that fits the rules of a schema: all of them, with those that no grammar can hold.

Knows JSON Schema, by way of the jsonschema package, and rules as `json_schema` reads them. Strings are matched as the
grammar matches them: in linear time, and a `format` means the same here and there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from functools import cache
from typing import TYPE_CHECKING, Any

from ..errors import GptOssError
from .json_matcher import string_fits
from .json_schema import Schema

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError

Errors = Iterator["ValidationError"]


def fault(rules: Schema, text: str) -> str | None:
    """What is wrong with a text, None if nothing is."""
    from jsonschema.exceptions import best_match
    from referencing import Registry

    try:
        # The registry is empty, because the default one opens connections for references to elsewhere.
        error = best_match(_validator()(rules, registry=Registry()).iter_errors(json.loads(text)))
    except json.JSONDecodeError as failure:
        return f"it is not JSON: {failure}"
    except (ValueError, ArithmeticError, RecursionError, GptOssError) as failure:
        return f"it could not be checked: {failure}"
    return error and f"{error.json_path} breaks the rule {error.validator or 'false'}"


@cache
def _validator() -> Any:
    """Takes rules and a registry. jsonschema's own, but for what Python's `re` could take for ever over, and for
    multiples of binary fractions."""
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend

    changed = {
        "pattern": _pattern,
        "format": _format,
        "patternProperties": _pattern_properties,
        "additionalProperties": _additional_properties,
        "multipleOf": _multiple_of,
    }
    return extend(Draft202012Validator, changed)


def _pattern(validator: Any, pattern: str, value: Any, rules: Any) -> Errors:
    return _broken_unless(not isinstance(value, str) or string_fits("pattern", pattern, value))


def _format(validator: Any, name: str, value: Any, rules: Any) -> Errors:
    return _broken_unless(not isinstance(value, str) or string_fits("format", name, value))


def _multiple_of(validator: Any, number: float, value: Any, rules: Any) -> Errors:
    return _broken_unless(not validator.is_type(value, "number") or Decimal(str(value)) % Decimal(str(number)) == 0)


def _broken_unless(holds: bool) -> Errors:
    from jsonschema import ValidationError

    if not holds:
        yield ValidationError("")


def _pattern_properties(validator: Any, patterns: dict[str, Schema], value: Any, rules: Any) -> Errors:
    for name, entry in value.items() if isinstance(value, dict) else ():
        for pattern, part in patterns.items():
            if string_fits("pattern", pattern, name):
                yield from validator.descend(entry, part, path=name, schema_path=pattern)


def _additional_properties(validator: Any, part: Schema, value: Any, rules: Any) -> Errors:
    for name, entry in value.items() if isinstance(value, dict) else ():
        named = name in rules.get("properties", {})
        if not (named or any(string_fits("pattern", pattern, name) for pattern in rules.get("patternProperties", {}))):
            yield from validator.descend(entry, part, path=name)
