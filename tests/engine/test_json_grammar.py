"""Texts drawn at random among the tokens that a grammar allows, against the jsonschema package."""

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoints import write_tokenizer
from engine.grammars import (
    BLANK,
    INTEGER,
    NULL,
    STOP,
    STRING,
    TOKENIZER,
    VOCABULARY,
    assert_valid,
    closed,
    grammar_of,
    written,
)
from gptoss_mlx.demo import CHECKPOINT
from gptoss_mlx.engine import json_grammar
from gptoss_mlx.engine.json_grammar import JsonGrammar, load_schema
from gptoss_mlx.engine.json_matcher import matcher_of
from gptoss_mlx.engine.tokenizer import Tokenizer
from gptoss_mlx.errors import GptOssError

TREE = closed(value=INTEGER) | {
    "properties": {"value": INTEGER, "children": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 2}}
}
SCHEMAS = {
    "anything": True,
    "anything, as an object": {},
    "nested objects": closed(a=closed(b={"type": "array", "items": closed(c=NULL)})),
    "further properties": {"type": "object", "properties": {"a": INTEGER, "b": STRING}, "required": ["b"]},
    "further properties of a type": {"type": "object", "additionalProperties": {"type": "boolean"}},
    "properties by pattern": {
        "type": "object",
        "patternProperties": {"^x_[a-z]{1,3}$": INTEGER},
        "additionalProperties": False,
    },
    "few properties": {"type": "object", "maxProperties": 1, "additionalProperties": INTEGER},
    "empty object": closed(),
    "enum": {"enum": ["red", "green", 3, None, True, {"a": [1]}]},
    "const": {"const": {"x": '"\\\n<|end|>é', "y": [1, 2.5]}},
    "anyOf": {"anyOf": [INTEGER | {"minimum": 10}, STRING | {"maxLength": 3}, NULL]},
    "oneOf": {"oneOf": [closed(kind={"const": "a"}, value=INTEGER), closed(kind={"const": "b"}, value=NULL)]},
    "allOf": {"allOf": [{"type": "object", "properties": {"a": NULL}, "required": ["a"]}, {"required": ["b"]}]},
    "recursion": {"$ref": "#/$defs/tree", "$defs": {"tree": TREE}},
    "draft 7": {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "definitions": {"pair": {"type": "array", "items": [INTEGER, NULL], "additionalItems": False}},
        "$ref": "#/definitions/pair",
    },
    "integers in a range": INTEGER | {"minimum": -17, "exclusiveMaximum": 123},
    "numbers in a range": {"type": "number", "exclusiveMinimum": 0.5, "maximum": 2.25},
    "multiples": INTEGER | {"multipleOf": 7, "minimum": 0, "maximum": 1000},
    "pattern": STRING | {"pattern": "^[A-Z]{2}-[0-9]{3,5}$"},
    "length": STRING | {"minLength": 2, "maxLength": 5},
    "UUID": STRING | {"format": "uuid"},
    "IPv4 address": STRING | {"format": "ipv4"},
    "array": {"type": "array", "items": INTEGER | {"minimum": 0, "maximum": 9}, "minItems": 2, "maxItems": 4},
    "tuple": {"type": "array", "prefixItems": [NULL, {"type": "boolean"}], "items": False, "minItems": 2},
    "several types": {"type": ["integer", "null", "boolean"]},
    "unicode": closed(**{"größe 👍": {"enum": ["ä", "日本", "\u2028"]}}),
}


@pytest.mark.parametrize("count", [3, pytest.param(12, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", SCHEMAS)
def test_every_finished_text_fits_the_schema(name, count):
    grammar, texts = grammar_of(SCHEMAS[name]), []
    for seed in range(count):
        grammar.reset()
        texts.append(written(grammar, seed))
        if texts[-1] is not None:
            assert_valid(SCHEMAS[name], texts[-1])
    assert sum(text is not None for text in texts) > 2 * count // 3


# Control characters are what a grammar's strings do not hold.
WRITABLE = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=4)


def objects(schemas):
    def build(named, further, data):
        return {
            "type": "object",
            "properties": named,
            "required": [name for name, wanted in zip(named, data, strict=False) if wanted],
            "additionalProperties": further,
        }

    return st.builds(
        build,
        st.dictionaries(WRITABLE, schemas, max_size=3),
        st.booleans(),
        st.lists(st.booleans(), min_size=3, max_size=3),
    )


def arrays(schemas):
    def build(items, least, more):
        return {"type": "array", "items": items, "minItems": least, "maxItems": least + more}

    return st.builds(build, schemas, st.integers(0, 2), st.integers(0, 2))


LEAVES = st.one_of(
    st.sampled_from([NULL, {"type": "boolean"}, INTEGER, {"type": "number"}, STRING, {"type": ["null", "integer"]}]),
    st.builds(lambda a, b: INTEGER | {"minimum": a, "maximum": a + b}, st.integers(-999, 999), st.integers(0, 999)),
    st.builds(lambda a, b: STRING | {"minLength": a, "maxLength": a + b}, st.integers(0, 3), st.integers(0, 3)),
    st.builds(
        lambda values: {"enum": values},
        st.lists(st.one_of(WRITABLE, st.integers(-(2**53), 2**53), st.none()), min_size=1),
    ),
)
RANDOM_SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        objects(inner),
        arrays(inner),
        st.builds(lambda variants: {"anyOf": variants}, st.lists(inner, min_size=1, max_size=3)),
    ),
    max_leaves=6,
)


@given(RANDOM_SCHEMAS, st.integers(0, 2**32))
def test_texts_of_random_schemas_fit_them(schema, seed):
    if (text := written(grammar_of(schema), seed)) is not None:
        assert_valid(schema, text)


def test_a_model_that_likes_blanks_still_comes_to_an_end():
    schema = closed(a={"type": "array", "items": INTEGER, "minItems": 2, "maxItems": 2}, b=closed(c=NULL))
    text = written(grammar_of(schema), 0, preferred=BLANK)
    assert_valid(schema, text)
    assert len(text.split()) < len(text) / 10


def test_names_of_special_tokens_are_spelled_out():
    names = "".join(TOKENIZER.specials.values())
    assert written(grammar_of({"const": names}), 0) == json.dumps(names)


def test_a_special_token_that_is_in_the_vocabulary_too_is_no_text(tmp_path):
    write_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    data = json.loads(path.read_text())
    data["model"]["vocab"] |= {token["content"]: token["id"] for token in data["added_tokens"]}
    path.write_text(json.dumps(data))
    tokenizer = Tokenizer.load(tmp_path)
    grammar = JsonGrammar(STRING, tokenizer, 264, tokenizer.special("<|return|>"))
    grammar.accept(*tokenizer.encode('"'))
    allowed = np.flatnonzero(np.array(grammar.allowed()))
    assert len(allowed) > 90
    assert max(allowed) < min(tokenizer.specials)


def test_an_escape_cannot_spell_the_name_of_a_property():
    grammar = grammar_of({"type": "object", "properties": {"a": INTEGER}})
    for id_ in TOKENIZER.encode('{"\\'):
        grammar.accept(id_)
    allowed = np.flatnonzero(np.array(grammar.allowed()))
    assert {TOKENIZER.decode([int(id_)])[0] for id_ in allowed} <= {*'"\\bfnrt'}


def test_a_number_is_finished_when_it_is_ended():
    grammar = grammar_of(INTEGER)
    (one,) = TOKENIZER.encode("1")
    grammar.accept(one)
    assert np.array(grammar.allowed())[[one, STOP]].all()
    assert not grammar.finished
    grammar.accept(STOP)
    assert grammar.finished


def test_an_object_is_finished_by_its_brace():
    grammar = grammar_of(closed(a=NULL))
    for id_ in TOKENIZER.encode('{"a": null'):
        grammar.accept(id_)
    assert not grammar.finished
    grammar.accept(*TOKENIZER.encode("}"))
    assert grammar.finished


@pytest.mark.parametrize("id_", [STOP, TOKENIZER.special("<|end|>"), 1599, 10**6])
def test_an_id_that_is_not_allowed_is_refused_and_reset_mends_it(id_):
    grammar = grammar_of({"const": 1})
    with pytest.raises(GptOssError) as error:
        grammar.accept(id_)
    assert "\n" not in str(error.value)
    assert not grammar.finished
    grammar.reset()
    assert written(grammar, 0) == "1"


def test_a_text_that_needs_too_many_states_is_an_error():
    grammar = grammar_of(STRING | {"pattern": "^" + 9 * "(" + "a" + 9 * "{1,9})" + "$"})

    def write():
        for id_ in TOKENIZER.encode('"' + 2000 * "a"):
            grammar.allowed()
            grammar.accept(id_)

    with pytest.raises(GptOssError, match="too many"):
        write()


def test_a_tokenizer_of_another_model_is_refused():
    with pytest.raises(GptOssError, match="1,500 tokens"):
        JsonGrammar(True, TOKENIZER, 1500, STOP)


def test_a_tokenizer_whose_tokens_are_not_bytes_is_refused(tmp_path):
    write_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    data = json.loads(path.read_text())
    data["model"]["vocab"]["日本"] = 300
    path.write_text(json.dumps(data))
    tokenizer = Tokenizer.load(tmp_path)
    with pytest.raises(GptOssError, match="日本"):
        JsonGrammar(True, tokenizer, 301, tokenizer.special("<|return|>"))


class Counting(Tokenizer):
    """Counts how often it was asked for the bytes of a token."""

    asked = 0

    def bytes_of(self, id_):
        self.asked += 1
        return super().bytes_of(id_)


def test_grammars_of_a_model_share_its_vocabulary_and_what_was_compiled_of_a_schema(monkeypatch):
    tokenizer = Counting.load(CHECKPOINT)
    compiled = []
    monkeypatch.setattr(json_grammar, "matcher_of", lambda *args: compiled.append(args) or matcher_of(*args))
    JsonGrammar(closed(a=NULL), tokenizer, VOCABULARY, STOP)
    assert (tokenizer.asked > 1000, len(compiled)) == (True, 1)
    tokenizer.asked = 0
    for stop in (STOP, TOKENIZER.special("<|call|>")):
        for schema in (closed(a=NULL), closed(b=NULL)):
            JsonGrammar(schema, tokenizer, VOCABULARY, stop)
    assert (tokenizer.asked, len(compiled)) == (0, 2)


@pytest.mark.parametrize("stop", [*TOKENIZER.specials])
def test_each_grammar_has_its_own_stop_and_allows_no_other(stop):
    grammar = JsonGrammar({"const": 1}, TOKENIZER, VOCABULARY, stop)
    for other in TOKENIZER.specials.keys() - {stop}:
        with pytest.raises(GptOssError):
            grammar.accept(other)
        grammar.reset()
    grammar.accept(*TOKENIZER.encode("1"))
    assert np.flatnonzero(np.array(grammar.allowed())).tolist() == [stop]
    grammar.accept(stop)
    assert grammar.finished


def test_grammars_of_one_schema_do_not_know_of_each_other():
    first, second = grammar_of(closed(a=NULL)), grammar_of(closed(a=NULL))
    first.accept(*TOKENIZER.encode("{"))
    assert written(second, 0) == written(grammar_of(closed(a=NULL)), 0)
    assert_valid(closed(a=NULL), "{" + written(first, 0))


def test_a_schema_is_read_as_it_is(tmp_path):
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(SCHEMAS["recursion"]))
    assert load_schema(path) == SCHEMAS["recursion"]


def test_llguidance_is_imported_when_it_is_used():
    code = "import gptoss_mlx.engine.json_grammar, sys; print('llguidance' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
