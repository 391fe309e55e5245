"""A JSON schema as people write it -> its rules in the words of 2020-12, and of these what a grammar can hold.

Knows JSON Schema since draft 4, what OpenAPI adds to it, and what clients of OpenAI's API wrap it in; where references
lead is the referencing package's business. Makes no grammar and checks no text, but knows what llguidance takes.

What it cannot do justice to is refused, with its place. Where dialects differ, a schema is read in the sense in which
it is mostly written, whatever dialect it names: `nullable: true` allows null, beside `enum` and `$ref` too; where
`exclusiveMinimum` is true, `items` a list, or `definitions` or `dependencies` are there, they are what they once were;
and a `format` that is not among FORMATS is a note.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ..errors import GptOssError

if TYPE_CHECKING:
    from referencing._core import Resolver

Schema = dict[str, Any] | bool

TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
FORMATS = ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")

# Keywords that hold a schema, a list of schemas, or schemas by name.
ONE = ("items", "additionalProperties", "propertyNames", "not")
MANY = ("prefixItems", "allOf", "anyOf", "oneOf")
NAMED = ("properties", "patternProperties", "dependentSchemas")

COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
REFUSED = ("if", "contains", "unevaluatedItems", "unevaluatedProperties", "$dynamicRef", "$recursiveRef")
DRAFT_3 = ("extends", "disallow", "divisibleBy")

LEFT_OUT = ("not", "uniqueItems", "propertyNames", "dependentRequired", "dependentSchemas", "discriminator", "$defs")
DEFINITIONS = "#/$defs/"

NO_SCHEMA = "a JSON schema is an object, true or false"

# What may stand around a schema in a request, or in a file that a client has saved.
WRAPPERS = ("response_format", "json_schema", "schema")

# What JSON writes as \u0001 only, and how a pattern may ask for it.
UNWRITABLE = re.compile(r"[\x00-\x07\x0b\x0e-\x1f\x7f]")
PERHAPS_UNWRITABLE = re.compile(r"[\x00-\x1f\x7f]|\\[xucpP0]")
WRITABLE = {"pattern": r"^[^\x00-\x07\x0b\x0e-\x1f\x7f]*$"}

# How far llguidance takes numbers exactly, or at all, or before one loses patience.
EXACT = 2**53
LARGEST, SMALLEST = 9e17, 1e-40
MAX_COUNT = 100_000
MAX_MULTIPLE = 100_000
MAX_OPTIONAL = 32
MAX_EXCLUSIVE = 6


def unwrapped(schema: Any) -> Any:
    """The schema in what may be a response format, or a part of one; a schema is returned as it is."""
    while isinstance(schema, dict) and not any(_is_rule(*entry) for entry in schema.items()):
        wrapper = next((name for name in WRAPPERS if name in schema), None)
        if wrapper is None:
            return {"type": "object"} if schema.get("type") == "json_object" else schema
        schema = schema[wrapper]
    return schema


def read(schema: Schema, try_pattern: Callable[[str], None]) -> Schema:
    """The rules of a schema alone, with what its references lead to under `$defs`.

    `try_pattern` raises GptOssError for a regular expression that cannot be used. `read` does, with the place, for what
    is malformed and for what can be neither put into a grammar nor checked.
    """
    if isinstance(schema, bool):
        return schema
    if not isinstance(schema, dict):
        raise unusable("#", NO_SCHEMA)
    reader = _Reader(schema, try_pattern)
    return _with_definitions(reader.read(schema, "#", reader.root), reader.definitions)


def relaxed(rules: Schema) -> Schema:
    """What llguidance can hold of the rules that were read. A text that fits it has still to be checked; one that fits
    the rules mostly fits it too, but not a variant without its tag, which could be mistaken for another."""
    relaxer = _Relaxer(rules)
    return _with_definitions(relaxer.relaxed(rules), relaxer.definitions)


def _with_definitions(rules: Schema, definitions: dict[str, Schema]) -> Schema:
    """Definitions belong to rules that refer to them, which true and false do not."""
    return {**rules, "$defs": definitions} if definitions and isinstance(rules, dict) else rules


def unusable(where: str, reason: str) -> GptOssError:
    return GptOssError(f"the JSON schema cannot be used: {reason} (at {where})")


def _is_rule(keyword: str, value: Any) -> bool:
    if keyword == "type":
        return value not in ("json_schema", "json_object")
    return keyword in ONE or keyword in SHAPES or keyword in REFUSED


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return _is_number(value) and value >= 0 and value % 1 == 0


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _are_types(value: Any) -> bool:
    return all(kind in TYPES for kind in _types(value))


def _types(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _is(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kind)


SHAPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys((*MANY, "enum"), (_is(list), "a list")),
    **dict.fromkeys((*NAMED, "dependentRequired", "dependencies"), (_is(dict), "an object")),
    **dict.fromkeys(("$ref", "pattern", "format"), (_is(str), "a string")),
    **dict.fromkeys(("uniqueItems", "nullable"), (_is(bool), "true or false")),
    **dict.fromkeys(COUNTS, (_is_count, "a whole number that is not negative")),
    **dict.fromkeys(BOUNDS, (_is_number, "a number")),
    "multipleOf": (lambda value: _is_number(value) and value != 0, "a number other than 0"),
    "required": (_are_names, "a list of names"),
    "type": (_are_types, f"one of {', '.join(TYPES)}, or a list of these"),
    "const": (_is(object), "a value"),
}


class _Reader:
    """Reads the parts of one document."""

    def __init__(self, document: dict[str, Any], try_pattern: Callable[[str], None]):
        from jsonschema import Draft202012Validator
        from jsonschema.validators import validator_for
        from referencing import Registry
        from referencing.jsonschema import DRAFT4, DRAFT6, DRAFT7, DRAFT202012, specification_with

        dialect = document.get("$schema")
        dialect = dialect if isinstance(dialect, str) else ""
        known = _attempt("#", lambda name: validator_for({"$schema": name}, Draft202012Validator), dialect).VALIDATORS
        self._refused = {*DRAFT_3, *(keyword for keyword in REFUSED if keyword in known)}
        self._specification = specification_with(dialect, default=DRAFT202012)
        self._refs_stand_alone = self._specification in (DRAFT4, DRAFT6, DRAFT7)
        # The registry is empty but for the document, so that nothing is ever fetched.
        self.root = _attempt("#", Registry().resolver_with_root, self._specification.create_resource(document))
        self.definitions: dict[str, Schema] = {}
        self._names: dict[int, str] = {}
        self._found: dict[tuple[int, str], tuple[Resolver, str]] = {}
        self._try_pattern = try_pattern

    def read(self, schema: Any, where: str, resolver: Resolver) -> Schema:
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict):
            raise unusable(where, NO_SCHEMA)
        resolver = _attempt(where, resolver.in_subresource, self._specification.create_resource(schema))
        if self._refs_stand_alone and "$ref" in schema:
            schema = {keyword: schema[keyword] for keyword in ("$ref", "nullable") if keyword in schema}
        rules: dict[str, Any] = {}
        for keyword, value in _modern(schema, where).items():
            here = _below(where, keyword)
            if keyword in self._refused:
                raise unusable(here, f"{keyword} is not supported")
            _check_shape(keyword, value, here)
            for pattern in [value] if keyword == "pattern" else value if keyword == "patternProperties" else ():
                self._check_pattern(pattern, here)
            if keyword in ONE:
                rules[keyword] = self.read(value, here, resolver)
            elif keyword in MANY:
                rules[keyword] = [self.read(part, _below(here, index), resolver) for index, part in enumerate(value)]
            elif keyword in NAMED:
                rules[keyword] = {name: self.read(part, _below(here, name), resolver) for name, part in value.items()}
            elif keyword == "$ref":
                rules[keyword] = self._definition(value, here, resolver)
            elif keyword in COUNTS:
                rules[keyword] = int(value)
            elif keyword == "discriminator" or keyword in SHAPES:
                rules[keyword] = value
        if rules.get("format", FORMATS[0]) not in FORMATS:
            del rules["format"]
        if rules.pop("nullable", False):
            rules = {"anyOf": [rules, {"type": "null"}]}
        return rules

    def _check_pattern(self, pattern: str, where: str) -> None:
        try:
            self._try_pattern(pattern)
        except GptOssError as error:
            raise GptOssError(f"{error} (at {where})") from None

    def _definition(self, reference: str, where: str, resolver: Resolver) -> str:
        if known := self._found.get((id(resolver), reference)):
            return known[1]
        found = _attempt(where, resolver.lookup, reference)
        name = self._names.setdefault(id(found.contents), str(len(self._names)))
        self._found[id(resolver), reference] = resolver, DEFINITIONS + name
        if name not in self.definitions:
            self.definitions[name] = {}  # it may refer to itself
            place = reference if reference.startswith("#") else where
            self.definitions[name] = self.read(found.contents, place, found.resolver)
        return DEFINITIONS + name


def _attempt(where: str, look: Callable[[Any], Any], argument: Any) -> Any:
    """What the referencing package finds, which can stumble over anything in the document."""
    from referencing.exceptions import Unresolvable

    try:
        return look(argument)
    except (Unresolvable, LookupError, TypeError, ValueError, AttributeError, RecursionError):
        what = f"{argument} leads nowhere in it" if isinstance(argument, str) else "an identifier in it is malformed"
        raise unusable(where, what) from None


def _below(where: str, key: str | int) -> str:
    return f"{where}/{str(key).replace('~', '~0').replace('/', '~1')}"


def _modern(schema: dict[str, Any], where: str) -> dict[str, Any]:
    """The same in keywords of 2020-12, as far as these have others of the same sense."""
    schema = dict(schema)
    for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if schema.get(exclusive) is False:
            del schema[exclusive]
        elif schema.get(exclusive) is True and bound in schema:
            schema[exclusive] = schema.pop(bound)
    if isinstance(schema.get("items"), list):
        schema["prefixItems"] = schema.pop("items")
        if "additionalItems" in schema:
            schema["items"] = schema.pop("additionalItems")
    if "dependencies" in schema:
        dependencies = schema.pop("dependencies")
        _check_shape("dependencies", dependencies, _below(where, "dependencies"))
        names = {name: needed for name, needed in dependencies.items() if isinstance(needed, list)}
        schemas = {name: needed for name, needed in dependencies.items() if name not in names}
        schema["dependentRequired"] = names | schema.get("dependentRequired", {})
        schema["dependentSchemas"] = schemas | schema.get("dependentSchemas", {})
    return schema


def _check_shape(keyword: str, value: Any, where: str) -> None:
    """Raises GptOssError for a value that its keyword cannot have."""
    fits, words = SHAPES.get(keyword, (_is(object), ""))
    if not fits(value):
        raise unusable(where, f"{keyword} must be {words}, not {_shortened(value)}")
    if keyword == "dependentRequired":
        for name, needed in value.items():
            _check_shape("required", needed, _below(where, name))
    if keyword in ("const", "enum"):
        _check_writable(value, where)


def _check_writable(value: Any, where: str) -> None:
    """Raises GptOssError for a value that no text by a grammar of llguidance can stand for."""
    if isinstance(value, str) and UNWRITABLE.search(value):
        raise unusable(where, f"{_shortened(value)} has a control character that cannot be written")
    if isinstance(value, int) and abs(value) > EXACT:
        raise unusable(where, f"{value} is beyond 2^53")
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_writable(part, where)


def _shortened(value: Any) -> str:
    text = json.dumps(value, default=repr)
    return text if len(text) <= 40 else f"{text[:37]}..."


class _Relaxer:
    """Leaves out what llguidance cannot hold, and adds what follows from that and can be held."""

    def __init__(self, rules: Schema):
        self._sources = rules.get("$defs", {}) if isinstance(rules, dict) else {}
        self._multiples = _manageable(_multiples(rules))
        self._names: dict[tuple[str, str | None], str] = {}
        self.definitions: dict[str, Schema] = {}

    def relaxed(self, rules: Schema) -> Schema:
        return rules if isinstance(rules, bool) else self._relaxed(rules)

    def _relaxed(self, rules: dict[str, Any]) -> dict[str, Any]:
        kept: dict[str, Any] = {}
        for keyword, value in rules.items():
            if keyword in LEFT_OUT:
                continue
            if keyword == "$ref":
                kept[keyword] = self._definition(value)
            elif keyword == "oneOf":  # which the matcher takes for anyOf
                kept[keyword] = self._variants(value, rules.get("discriminator"))
            elif keyword in ONE:
                kept[keyword] = self.relaxed(value)
            elif keyword in MANY:
                kept[keyword] = [self.relaxed(part) for part in value]
            elif keyword in NAMED:
                kept[keyword] = {name: self.relaxed(part) for name, part in value.items()}
            elif self._is_held(keyword, value, rules):
                kept[keyword] = value
        if implied := [self.relaxed(part) for part in self._implied(rules)]:
            kept["allOf"] = [*kept.get("allOf", []), *implied]
        return kept

    def _is_held(self, keyword: str, value: Any, rules: dict[str, Any]) -> bool:
        if keyword in ("minProperties", "maxProperties"):
            return not _optional(rules)
        if keyword in COUNTS:
            return value <= MAX_COUNT
        if keyword in BOUNDS:
            return value == 0 or SMALLEST <= abs(value) <= LARGEST
        return keyword != "multipleOf" or value in self._multiples

    def _variants(self, parts: list[Schema], discriminator: Any) -> list[Schema]:
        """Those of a oneOf, kept apart where that can be done."""
        tag = discriminator.get("propertyName") if isinstance(discriminator, dict) else None
        if isinstance(tag, str):
            return [self._tagged(part, tag) for part in parts]
        negated = [_negated(part) for part in parts]
        if len(parts) <= MAX_EXCLUSIVE and None not in negated:
            parts = [{"allOf": [part, *negated[:index], *negated[index + 1 :]]} for index, part in enumerate(parts)]
        return [self.relaxed(part) for part in parts]

    def _tagged(self, part: Schema, tag: str) -> Schema:
        """A variant with its tag: where that has a default, and is left away, it could be any of them."""
        if isinstance(part, bool):
            return part
        if "$ref" in part:
            rest = {keyword: value for keyword, value in part.items() if keyword != "$ref"}
            return self._relaxed(rest) | {"$ref": self._definition(part["$ref"], tag)}
        return self.relaxed(part | {"required": [*part.get("required", []), tag]})

    def _definition(self, reference: str, tag: str | None = None) -> str:
        source = reference.removeprefix(DEFINITIONS)
        if (source, tag) not in self._names:
            name = self._names[source, tag] = str(len(self._names))
            rules = self._sources[source]
            self.definitions[name] = self.relaxed(rules) if tag is None else self._tagged(rules, tag)
        return DEFINITIONS + self._names[source, tag]

    def _implied(self, rules: dict[str, Any]) -> Iterator[Schema]:
        """Rules that follow from those that are left out."""
        if "not" in rules and (negated := _negated(rules["not"])) is not None:
            yield negated
        dependent = [(name, {"required": [name, *names]}) for name, names in rules.get("dependentRequired", {}).items()]
        for name, part in rules.get("dependentSchemas", {}).items():
            dependent.append((name, {"allOf": [{"required": [name]}, part]}))
        if len(dependent) <= MAX_EXCLUSIVE:
            yield from ({"anyOf": [_without([name]), part]} for name, part in dependent)
        optional = [] if dependent else _optional(rules)
        if 0 < len(optional) <= MAX_OPTIONAL and rules.get("minProperties") == len(set(rules.get("required", []))) + 1:
            one = [_without(optional[:index]) | {"required": [name]} for index, name in enumerate(optional)]
            yield {"anyOf": [*one, _without(optional) | {"minProperties": rules["minProperties"]}]}
        names = self._followed(rules.get("propertyNames", True))
        if _are_names(names.get("enum")):
            yield {"properties": dict.fromkeys(names["enum"], True), "additionalProperties": False}
        if "pattern" in names:
            yield {"patternProperties": {names["pattern"]: True}, "additionalProperties": False}
        if rules is not WRITABLE and PERHAPS_UNWRITABLE.search(rules.get("pattern", "")):
            yield WRITABLE

    def _followed(self, rules: Schema) -> dict[str, Any]:
        """What a reference leads to."""
        if isinstance(rules, dict) and "$ref" in rules:
            rules = self._sources[rules["$ref"].removeprefix(DEFINITIONS)]
        return rules if isinstance(rules, dict) else {}


def _without(names: Iterable[str]) -> dict[str, Any]:
    return {"properties": dict.fromkeys(names, False)}


def _optional(rules: dict[str, Any]) -> list[str]:
    """The properties that may be there or not."""
    required = rules.get("required", [])
    return [name for name, part in rules.get("properties", {}).items() if part is not False and name not in required]


def _negated(rules: Schema) -> Schema | None:
    """What fits wherever `rules` do not, and only there; None where llguidance could not hold it."""
    if isinstance(rules, bool) or not rules:
        return rules is False
    rest = dict(rules)
    keyword, value = rest.popitem() if len(rest) == 1 else ("required", rest.pop("required", None))
    if keyword == "required" and value is not None and rest in ({}, {"type": "object"}):
        lacking = {"anyOf": [_without([name]) for name in value]}
        return lacking if rest else {"type": "object", **lacking}
    if keyword == "type" and ("number" in _types(value) or "integer" not in _types(value)):
        return {"type": [kind for kind in TYPES if kind not in ("integer", *_types(value))]}
    if keyword == "not":
        return value
    if keyword == "anyOf" and None not in (negated := [_negated(part) for part in value]):
        return {"allOf": negated}
    return None


def _multiples(rules: Any) -> Iterator[float]:
    """All that could be a `multipleOf`."""
    if isinstance(rules, dict) and _is_number(rules.get("multipleOf")):
        yield rules["multipleOf"]
    for part in rules.values() if isinstance(rules, dict) else rules if isinstance(rules, list) else ():
        yield from _multiples(part)


def _manageable(multiples: Iterable[float]) -> set[float]:
    """Those that may meet in one number: llguidance counts up to their least common multiple, in units of the last
    decimal place."""
    kept, common, places = set(), None, 0
    for multiple in sorted(set(multiples), key=abs, reverse=True):
        value, digits = _decimal(abs(multiple))
        longest = max(places, digits)
        value *= 10 ** (longest - digits)
        together = value if common is None else math.lcm(value, common * 10 ** (longest - places))
        if together <= MAX_MULTIPLE:
            kept.add(multiple)
            common, places = together, longest
    return kept


def _decimal(value: float) -> tuple[int, int]:
    """A number as llguidance reads it: an integer, and how many of its digits are after the point."""
    digits = 0
    while value % 1:
        value *= 10
        digits += 1
    return int(value), digits
