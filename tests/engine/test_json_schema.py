"""Schemas in all their dialects: which texts fit them, and which schemas cannot be used."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from engine.grammars import INTEGER, STOP, STRING, TOKENIZER, closed, grammar_of, written
from gptoss_mlx.engine.json_check import fault
from gptoss_mlx.engine.json_grammar import load_schema
from gptoss_mlx.engine.json_matcher import try_pattern
from gptoss_mlx.engine.json_schema import read
from gptoss_mlx.errors import GptOssError

UNUSABLE = {
    "[]": "an object, true or false",
    "3": "an object, true or false",
    "false": "false",
    "{": "line 1",
    '{"type": "objekt"}': "objekt",
    '{"type": "object", "type": "array"}': "twice",
    '{"properties": 3}': "properties must be an object",
    '{"$ref": "https://example.org/schema.json"}': "https://example.org/schema.json",
    '{"$ref": "#/$defs/a"}': "/$defs/a",
    '{"$ref": "#"}': "no text fits it",
    '{"enum": []}': "empty",
    '{"type": "integer", "minimum": 3, "maximum": 1}': "minimum",
    '{"const": 9007199254740993}': "2^53",
    '{"not": {}}': "not",
    '{"x-guidance": {"lenient": true}, "if": {}}': "if",
    '{"type": "string", "pattern": "("}': "unclosed group",
    '{"type": "string", "pattern": "(?=a)b"}': "look-around",
    '{"properties": {"a": {"items": {"if": {}}}}}': "if is not supported (at #/properties/a/items/if)",
    '{"properties": {"a/b": {"pattern": "("}}}': "(at #/properties/a~1b/pattern)",
    '{"not": {"patternProperties": {"(?=a)b": true}}}': "(at #/not/patternProperties)",
    '{"allOf": [{"minLength": -1}]}': "(at #/allOf/0/minLength)",
    '{"$defs": {"a": {"type": "any"}}, "$ref": "#/$defs/a"}': "(at #/$defs/a/type)",
    '{"anyOf": [{"contains": true}]}': "contains is not supported (at #/anyOf/0/contains)",
    '{"items": {"$dynamicRef": "#a"}}': "(at #/items/$dynamicRef)",
    '{"extends": {"$ref": "#"}}': "extends is not supported (at #/extends)",
    '{"dependencies": {"a": "b"}}': "(at #/dependentSchemas/a)",
    '{"exclusiveMinimum": true}': "(at #/exclusiveMinimum)",
    '{"nullable": "yes"}': "nullable must be true or false",
    '{"$schema": "http://["}': "leads nowhere",
    '{"$id": 3}': "an identifier in it is malformed",
    '{"$ref": "#/a/b", "a": 3}': "#/a/b leads nowhere",
    '{"properties": {"a": 3}}': "an object, true or false (at #/properties/a)",
    '{"const": "a\\u0001b"}': "a control character that cannot be written (at #/const)",
    '{"enum": [1, ["a\\u007f"]]}': "a control character that cannot be written (at #/enum)",
    '{"type": "string", "pattern": "^a\\u0001b$"}': "no text fits it (at #/pattern)",
    '{"type": "string", "pattern": "^a\\\\x01b$"}': "no text fits it (at #/pattern)",
    '{"patternProperties": {"^a\\u0001b$": {}}}': "no text fits it (at #/patternProperties)",
    '{"name": "a", "schema": 3}': "an object, true or false",
    '{"name": "a", "schema": {"const": 9007199254740993}}': "2^53",
}


@pytest.mark.parametrize("text", UNUSABLE)
def test_a_schema_that_cannot_be_used_is_named(tmp_path, text):
    path = tmp_path / "schema.json"
    path.write_text(text)
    with pytest.raises(GptOssError) as error:
        load_schema(path)
    assert str(path) in str(error.value)
    assert UNUSABLE[text] in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("schema", [{"const": {1}}, {"const": float("nan")}, {"const": "\ud800"}, {"not": {}}, None])
def test_a_schema_from_python_is_checked_too(schema):
    with pytest.raises(GptOssError, match="JSON schema"):
        grammar_of(schema)


def finishes(schema, text):
    """Whether a text is one by the grammar, and then passes the check."""
    grammar = grammar_of(schema)
    try:
        for id_ in [*TOKENIZER.encode(text), STOP]:
            grammar.accept(id_)
        grammar.check(text)
    except GptOssError:
        return False
    return grammar.finished


def listed(**properties):
    return {"type": "object", "properties": properties}


def tagged(kind):
    return listed(kind={"const": kind, "default": kind}, name=STRING) | {"required": ["name"]}


PETS = {
    "$defs": {"Cat": tagged("cat"), "Dog": tagged("dog")},
    "oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}],
    "discriminator": {"propertyName": "kind", "mapping": {"cat": "#/$defs/Cat", "dog": "#/$defs/Dog"}},
}
SUM = {"oneOf": [{"$ref": "#/$defs/Add"}, {"$ref": "#/$defs/Number"}], "discriminator": {"propertyName": "op"}}
SUMS = SUM | {
    "$defs": {
        "Add": listed(op={"const": "add", "default": "add"}, left=SUM, right=SUM) | {"required": ["left", "right"]},
        "Number": listed(op={"const": "number", "default": "number"}, value=INTEGER) | {"required": ["value"]},
    }
}
AB = listed(a=INTEGER, b=INTEGER)
ONE = {"const": 1}
DECIDED = {
    "a format of OpenAI's": ({"name": "one", "strict": True, "schema": ONE}, "1", "2"),
    "a format of chat completions": ({"type": "json_schema", "json_schema": {"name": "one", "schema": ONE}}, "1", "2"),
    "a format of responses": ({"type": "json_schema", "name": "one", "schema": ONE}, "1", "2"),
    "a request": ({"response_format": {"type": "json_schema", "json_schema": {"schema": ONE}}}, "1", "2"),
    "any object": ({"type": "json_object"}, "{}", "2"),
    "a property named schema": (listed(schema=ONE) | {"required": ["schema"]}, '{"schema":1}', "1"),
    "an object beside schema": ({"type": "object", "schema": ONE}, "{}", "1"),
    "uniqueItems false": ({"uniqueItems": False, "type": "array"}, "[1,1]", "1"),
    "uniqueItems": ({"uniqueItems": True}, '[1,true,"1"]', "[1,1]"),
    "a tag with a default": (PETS, '{"kind":"dog","name":"a"}', '{"name":"a"}'),
    "tags in a recursion": (
        SUMS,
        '{"op":"add","left":{"op":"number","value":1},"right":{"op":"number","value":2}}',
        '{"op":"add","left":{"op":"number","value":1},"right":{"value":2}}',
    ),
    "maximum of 64 bits": (INTEGER | {"maximum": 2**63 - 1}, str(2**63 - 1), str(2**63)),
    "minimum of 64 bits": (INTEGER | {"minimum": -(2**63)}, str(-(2**63)), str(-(2**63) - 1)),
    "unsigned 64 bits": ({"type": "number", "minimum": 0, "maximum": 2**64 - 1}, str(2**64 - 1), str(2**64)),
    "exclusive beyond 2^53": (INTEGER | {"exclusiveMinimum": 2**53 + 1}, str(2**53 + 2), str(2**53 + 1)),
    "a minimum without a float": ({"exclusiveMinimum": 1e-300}, "0.1", "0"),
    "0 below a fraction": (INTEGER | {"minimum": 0.5}, "1", "0"),
    "multiples beyond 2^32": ({"multipleOf": 2**32}, str(2**33), "2"),
    "large multiples that meet": ({"allOf": [{"multipleOf": 997}, {"multipleOf": 991}]}, "988027", "997"),
    "decimal multiples": ({"multipleOf": 0.01}, "0.29", "0.295"),
    "multiples that are no float": ({"multipleOf": 0.07}, "0.21", "0.2"),
    "a whole float as a count": (STRING | {"maxLength": 1.0}, '"a"', '"ab"'),
    "a count without end": ({"type": "array", "maxItems": 2**40, "items": INTEGER}, "[1]", '["a"]'),
    "format binary": (STRING | {"format": "binary"}, '"a"', "1"),
    "format uri-reference": (STRING | {"format": "uri-reference"}, '"../a"', "1"),
    "format int32": (INTEGER | {"format": "int32"}, "1", '"1"'),
    "a format beside no type": ({"format": "password"}, '"a"', '"'),
    "formats in a oneOf": ({"oneOf": [{"format": "ipv4", **STRING}, {"format": "date", **STRING}]}, '"1.2.3.4"', '"a"'),
    "nullable": (STRING | {"nullable": True}, "null", "1"),
    "nullable beside enum": ({"enum": ["a"], "nullable": True}, "null", '"b"'),
    "nullable beside a reference": ({"$ref": "#/$defs/a", "nullable": True, "$defs": {"a": INTEGER}}, "null", '"b"'),
    "nullable beside allOf": ({"allOf": [INTEGER], "nullable": True}, "null", '"b"'),
    "not nullable": (STRING | {"nullable": False}, '"a"', "null"),
    "a property named nullable": (closed(nullable=INTEGER), '{"nullable":1}', "null"),
    "exclusiveMinimum of draft 4": (INTEGER | {"minimum": 3, "exclusiveMinimum": True}, "4", "3"),
    "exclusiveMaximum of draft 4": (INTEGER | {"maximum": 3, "exclusiveMaximum": False}, "3", "4"),
    "items as a list": ({"items": [INTEGER], "additionalItems": False, "type": "array"}, "[1]", "[1,2]"),
    "definitions": ({"$ref": "#/definitions/a", "definitions": {"a": INTEGER}}, "1", '"a"'),
    "a reference to anywhere": ({"$ref": "#/components/a~1b/0", "components": {"a/b": [INTEGER]}}, "1", '"a"'),
    "a reference with escapes": ({"$ref": "#/$defs/a%25b", "$defs": {"a%b": INTEGER}}, "1", '"a"'),
    "an anchor": ({"$ref": "#a", "$defs": {"x": INTEGER | {"$anchor": "a"}}}, "1", '"a"'),
    "an identifier": (
        {"$id": "https://example.org/a", "$ref": "b#/$defs/c", "$defs": {"x": {"$id": "b", "$defs": {"c": INTEGER}}}},
        "1",
        '"a"',
    ),
    "an identifier of draft 4": (
        {
            "$schema": "http://json-schema.org/draft-04/schema#",
            "$ref": "#a",
            "definitions": {"x": INTEGER | {"id": "#a"}},
        },
        "1",
        '"a"',
    ),
    "what stands beside a reference in draft 7": (
        {"$schema": "http://json-schema.org/draft-07/schema#", "$ref": "#/x", "maximum": 3, "x": INTEGER},
        "4",
        '"a"',
    ),
    "words within a length": (
        STRING | {"pattern": r"^$|(^(?:\S+\s+){0,99}\S+$)", "maxLength": 5000},
        '"to be or not"',
        '" "',
    ),
    "a keyword in a value": ({"const": {"if": 1, "$ref": "#/nowhere"}}, '{"if":1,"$ref":"#/nowhere"}', "{}"),
    "a keyword as a name": (closed(uniqueItems=INTEGER), '{"uniqueItems":1}', "{}"),
    "a keyword in an example": (INTEGER | {"default": {"not": 3}, "examples": [{"if": 3}]}, "1", '"a"'),
    "an escaped name": (closed(**{"a\x01": INTEGER}), '{"a\\u0001":1}', '{"a":1}'),
    "a pattern that may go without": (STRING | {"pattern": "^a\\x01?b$"}, '"ab"', '"a"'),
    "oneOf that overlaps": ({"oneOf": [INTEGER, {"type": "number"}]}, "1.5", "1"),
    "oneOf by names": (AB | {"oneOf": [{"required": ["a"]}, {"required": ["b"]}]}, '{"b":1}', '{"a":1,"b":1}'),
    "oneOf in properties": (closed(a={"oneOf": [{"minimum": 3}, {"maximum": 5}]}), '{"a":7}', '{"a":4}'),
    "not a name": (AB | {"not": {"required": ["a"]}}, '{"b":1}', '{"a":1}'),
    "not either name": (AB | {"not": {"anyOf": [{"required": ["a"]}, {"required": ["b"]}]}}, "{}", '{"b":1}'),
    "not a type": ({"not": {"type": ["string", "number"]}}, "null", "1"),
    "not a value": ({"not": {"const": 3}}, "4", "3"),
    "not a pattern": (STRING | {"not": {"pattern": "^a"}}, '"b"', '"ab"'),
    "dependentRequired": (AB | {"dependentRequired": {"a": ["b"]}}, '{"a":1,"b":1}', '{"a":1}'),
    "dependentSchemas": (AB | {"dependentSchemas": {"a": {"required": ["b"]}}}, '{"b":1}', '{"a":1}'),
    "dependencies": (AB | {"dependencies": {"a": ["b"], "b": {"properties": {"b": ONE}}}}, '{"b":1}', '{"b":2}'),
    "minProperties 1": (AB | {"minProperties": 1}, '{"c":1}', "{}"),
    "minProperties 1, closed": (AB | {"minProperties": 1, "additionalProperties": False}, '{"b":1}', "{}"),
    "minProperties 2": (AB | {"minProperties": 2}, '{"a":1,"c":1}', '{"a":1}'),
    "maxProperties 1": (AB | {"maxProperties": 1}, '{"a":1}', '{"a":1,"b":1}'),
    "propertyNames by enum": ({"propertyNames": {"enum": ["a"]}, "type": "object"}, '{"a":1}', '{"b":1}'),
    "propertyNames by pattern": ({"propertyNames": {"pattern": "^a"}, "type": "object"}, '{"ab":1}', '{"b":1}'),
    "propertyNames by length": ({"propertyNames": {"maxLength": 1}}, '{"a":1}', '{"ab":1}'),
    "a keyword of a later draft": (
        {"$schema": "http://json-schema.org/draft-04/schema#", "type": "integer", "if": {}},
        "1",
        '"a"',
    ),
}


@pytest.mark.parametrize("name", DECIDED)
def test_what_fits_is_finished_and_nothing_else(name):
    schema, fits, breaks = DECIDED[name]
    assert finishes(schema, fits)
    assert not finishes(schema, breaks)


def test_the_rule_that_a_text_breaks_is_named():
    grammar = grammar_of(closed(a={"type": "array", "items": {"oneOf": [INTEGER, {"type": "number"}]}}))
    with pytest.raises(GptOssError, match=r"the answer does not fit the JSON schema: \$\.a\[1\] breaks the rule oneOf"):
        grammar.check('{"a": [0.5, 1]}')


@pytest.mark.parametrize("text", ["", "1 2", "[" * 10**5, "1" * 10**4])
def test_a_text_that_cannot_be_checked_is_no_answer(text):
    with pytest.raises(GptOssError, match="does not fit"):
        grammar_of(True).check(text)


def test_references_without_end_are_refused_in_one_line():
    chain = {f"{number}": {"$ref": f"#/$defs/{number + 1}"} for number in range(3000)}
    with pytest.raises(GptOssError, match="too often"):
        grammar_of({"$ref": "#/$defs/0", "$defs": chain | {"3000": True}})


def test_a_schema_without_end_is_no_reason_to_finish():
    with pytest.raises(GptOssError, match="could not be checked"):
        grammar_of({"not": {"$ref": "#"}}).check("1")


def test_a_pattern_that_backtracks_is_checked_in_linear_time():
    """Python's `re` would take 2^5000 steps."""
    schema = {"not": {"anyOf": [{"pattern": "^(a+)+$"}, {"patternProperties": {"^(a+)+$": False}, "type": "object"}]}}
    grammar = grammar_of(schema)
    with pytest.raises(GptOssError, match="not"):
        grammar.check(json.dumps({5000 * "a" + "!": 1}))
    with pytest.raises(GptOssError, match="not"):
        grammar.check(json.dumps(5000 * "a"))
    grammar.check(json.dumps(5000 * "a" + "!"))


def test_six_hundred_optional_properties():
    names = [f"p{number}" for number in range(600)]
    schema = listed(**dict.fromkeys(names, INTEGER)) | {"additionalProperties": False}
    assert finishes(schema, json.dumps(dict.fromkeys(names[::100], 1)))


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.sampled_from([0.5, "", "a", "ab", "2020-02-03"])),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("abc"), inner, max_size=3)),
    max_leaves=6,
)


def rules(inner):
    some = st.lists(inner, min_size=1, max_size=3)
    named = st.dictionaries(st.sampled_from("abc"), inner, max_size=2)
    names = st.lists(st.sampled_from("abc"), max_size=2, unique=True)
    keywords = {
        "type": st.sampled_from(["object", "array", "integer", "number", ["string", "null"]]),
        "not": inner,
        "oneOf": some,
        "anyOf": some,
        "allOf": some,
        "properties": named,
        "additionalProperties": inner,
        "patternProperties": st.dictionaries(st.sampled_from(["^a", "b"]), inner, max_size=1),
        "propertyNames": inner,
        "required": names,
        "dependentRequired": st.dictionaries(st.sampled_from("abc"), names, max_size=2),
        "dependentSchemas": named,
        "minProperties": st.integers(0, 2),
        "maxProperties": st.integers(0, 2),
        "uniqueItems": st.booleans(),
        "prefixItems": some,
        "items": inner,
        "const": VALUES,
        "pattern": st.sampled_from(["^a", "b$"]),
        "minimum": st.integers(-2, 2),
        "multipleOf": st.sampled_from([2, 0.5]),
        "$ref": st.sampled_from(["#/$defs/x", "#/$defs/y"]),
    }
    return st.lists(st.sampled_from([*keywords]), max_size=3, unique=True).flatmap(
        lambda chosen: st.fixed_dictionaries({keyword: keywords[keyword] for keyword in chosen})
    )


SCHEMAS_OF_ALL_RULES = st.builds(
    lambda schema, x, y: schema | {"$defs": {"x": x, "y": y}},
    st.recursive(st.booleans(), rules, max_leaves=8).filter(lambda schema: isinstance(schema, dict)),
    st.sampled_from([True, False, INTEGER, {"items": {"$ref": "#/$defs/y"}}]),
    st.sampled_from([STRING, {"properties": {"a": {"$ref": "#/$defs/x"}}}]),
)


@given(SCHEMAS_OF_ALL_RULES, VALUES)
def test_the_check_agrees_with_the_jsonschema_package(schema, value):
    assert (fault(read(schema, try_pattern), json.dumps(value)) is None) == Draft202012Validator(schema).is_valid(value)


@given(SCHEMAS_OF_ALL_RULES, st.integers(0, 2**32))
def test_texts_that_pass_fit_all_rules(schema, seed):
    try:
        grammar = grammar_of(schema)
        text = written(grammar, seed, most=60)
        grammar.check(text or "")
    except GptOssError:  # no text fits it, or this one does not
        return
    assert Draft202012Validator(schema).is_valid(json.loads(text))
