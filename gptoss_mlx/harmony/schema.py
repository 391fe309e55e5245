"""JSON schema -> the TypeScript-like types in which Harmony describes a tool's parameters.

Spacing and comments are those of the openai-harmony package, because the model was trained on them; what it does not
render (`anyOf`, `$ref`, `const`) becomes `any` here too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from decimal import Decimal
from typing import Any

MAX_POWER = 308  # of ten that is a float
SIMPLE = {"string": "string", "number": "number", "integer": "number", "boolean": "boolean"}


def typescript(schema: Any, indent: str = "") -> str:
    """The type of one schema; continuation lines start with `indent`."""
    if not isinstance(schema, dict):
        return "any"
    if isinstance(variants := schema.get("oneOf"), list):
        return "".join(f"\n{indent} | {_variant(variant, indent, enum=_json)}" for variant in variants)
    kind = schema.get("type")
    if isinstance(kind, list) and (names := [name for name in kind if isinstance(name, str)]):
        return " | ".join("number" if name == "integer" else name for name in names)
    if kind == "object":
        return _object(schema, indent)
    if kind == "array":
        return f"{typescript(schema['items'], indent)}[]" if "items" in schema else "Array<any>"
    if kind == "string" and (values := _enum(schema)):
        return " | ".join(f'"{value}"' for value in values)
    return SIMPLE.get(kind, "any") if isinstance(kind, str) else "any"


def _object(schema: dict[str, Any], indent: str) -> str:
    head = f"{indent}// {schema['description']}\n{{\n" if isinstance(schema.get("description"), str) else "{\n"
    properties = schema.get("properties")
    required = schema.get("required")
    required = required if isinstance(required, list) else []
    body = ""
    for name, value in properties.items() if isinstance(properties, dict) else ():
        label = name if name in required else f"{name}?"
        body += _property(label, value if isinstance(value, dict) else {}, indent)
    return f"{head}{body}{indent}}}"


def _property(label: str, schema: dict[str, Any], indent: str) -> str:
    variants = schema.get("oneOf")
    description = schema.get("description") if isinstance(schema.get("description"), str) else None
    lines = []
    if isinstance(schema.get("title"), str):
        lines += [f"// {schema['title']}", "//"]
    if description is not None and "oneOf" not in schema:
        lines.append(f"// {description}")
    if isinstance(examples := schema.get("examples"), list) and examples:
        lines.append("// Examples:")
        lines += [f'// - "{example}"' for example in examples if isinstance(example, str)]
    if not isinstance(variants, list):
        comment = f" // {_default(schema)}" if "default" in schema and "oneOf" not in schema else ""
        lines.append(f"{label}: {_nullable(schema, indent + '    ')},{comment}")
        return "".join(f"{indent}{line}\n" for line in lines)

    first = variants[0] if variants and isinstance(variants[0], dict) else {}
    above = description is not None and first.get("description") != description
    if above:
        lines.append(f"// {description}")
    if "default" in schema:
        lines.append(f"// {_default(schema)}")
    lines.append(f"{label}:")
    for i, variant in enumerate(variants):
        described = i == 0 and above
        lines.append(f" | {_variant(variant, indent, described=described, known=description)}")
    return "".join(f"{indent}{line}\n" for line in [*lines, ","])


def _variant(
    schema: Any, indent: str, *, described: bool = False, known: str | None = None, enum: Callable[[str], str] = str
) -> str:
    """One alternative of a oneOf, with its description after it unless that was written above (`described`) or is the
    `known` one; `enum` writes the default of an enum."""
    text = _nullable(schema, indent + "   ")
    if not isinstance(schema, dict):
        return text
    comments = []
    description = schema.get("description")
    if isinstance(description, str) and not described and description != known:
        comments.append(description)
    if "default" in schema:
        comments.append(_default(schema, enum))
    return f"{text} // {' '.join(comments)}" if comments else text


def _nullable(schema: Any, indent: str) -> str:
    text = typescript(schema, indent)
    nullable = isinstance(schema, dict) and schema.get("nullable") is True
    return f"{text} | null" if nullable and "null" not in text else text


def _default(schema: dict[str, Any], enum: Callable[[str], str] = str) -> str:
    """An enum's default is a bare word, unless `enum` says otherwise; any other is JSON, with strings as they are."""
    value = schema["default"]
    if isinstance(value, str):
        return f"default: {enum(value)}" if _enum(schema) else f'default: "{value}"'
    return f"default: {_json(value)}"


def _json(value: Any) -> str:
    """As the package writes it, whose numbers look otherwise than Python's."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{_json(name)}:{_json(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_json, value)) + "]"
    if isinstance(value, float) or (isinstance(value, int) and not -(2**63) <= value < 2**64):
        return _float(value)
    return json.dumps(value, ensure_ascii=False)


def _float(value: float) -> str:
    """The shortest digits that mean the number, with an exponent below 1e-5 and from 1e16 on."""
    number = Decimal(repr(_read(value)))
    sign, digits, exponent = number.normalize().as_tuple()
    if not isinstance(exponent, int):  # NaN or infinity, which the package refuses
        return json.dumps(value)
    point = len(digits) + exponent  # how many digits stand before the point
    text = "".join(map(str, digits))
    if not number or 0 < point <= 16:
        text = text.ljust(point, "0")
        text = f"{text[:point]}.{text[point:] or 0}"
    elif -5 < point <= 0:
        text = f"0.{'0' * -point}{text}"
    else:
        text = f"{text[0]}{'.' * (len(text) > 1)}{text[1:]}e{point - 1}"
    return "-" * sign + text


def _read(value: float) -> float:
    """The number that the package reads where one is written out: its digits as an integer, times a power of ten, with
    the rounding of that. The last digits of an integer that does not fit into 64 bits are only counted."""
    sign, digits, exponent = Decimal(repr(value)).as_tuple()
    if not isinstance(exponent, int):
        return value
    whole = "".join(map(str, digits))
    while int(whole) >= 2**64:
        whole, exponent = whole[:-1], exponent + 1
    read = float(int(whole))
    if exponent < -MAX_POWER:
        read, exponent = read / 10.0**MAX_POWER, exponent + MAX_POWER
    if exponent > MAX_POWER:
        return math.inf
    read = read * float(10**exponent) if exponent >= 0 else read / float(10**-exponent)
    return -read if sign else read


def _enum(schema: dict[str, Any]) -> list[str]:
    values = schema.get("enum")
    return [value for value in values if isinstance(value, str)] if isinstance(values, list) else []
