"""Typed reading of a request's fields: what is taken, what is refused, and by which name."""

import pytest

from gptoss_mlx.engine.sampling import Sampling
from gptoss_mlx.server.errors import RequestError
from gptoss_mlx.server.fields import Fields

HUGE = 10**40
DEFAULTS = Sampling(temperature=0.5, top_p=0.9, top_k=7, min_p=0.1, repetition_penalty=1.1, seed=3)


def refused(read, *args, **options):
    with pytest.raises(RequestError) as error:
        read(*args, **options)
    assert error.value.status == 400
    assert error.value.kind == "invalid_request_error"
    assert error.value.param in error.value.message
    return error.value


@pytest.mark.parametrize(
    ("method", "value", "expected"),
    [
        ("text", "x", "x"),
        ("text", "", ""),
        ("flag", True, True),
        ("flag", False, False),
        ("integer", 3, 3),
        ("integer", 3.0, 3),
        ("list", [1], [1]),
        ("texts", "x", ("x",)),
        ("texts", ["x", "\n"], ("x", "\n")),
        ("texts", [], ()),
    ],
)
def test_what_is_taken(method, value, expected):
    assert getattr(Fields({"a": value}), method)("a") == expected


@pytest.mark.parametrize(
    ("method", "expected"), [("text", None), ("flag", False), ("integer", None), ("list", []), ("texts", ())]
)
def test_null_is_as_good_as_absent(method, expected):
    assert getattr(Fields({"a": None}), method)("a") == expected
    assert getattr(Fields({}), method)("a") == expected
    assert not Fields({"a": None}).has("a")


@pytest.mark.parametrize(
    ("method", "values"),
    [
        ("text", [3, True, [], {}, 1.5]),
        ("flag", [0, 1, "true", [], {}]),
        ("integer", [True, "3", 1.5, [], {}, -1, HUGE, -HUGE, 1e300, float("inf"), float("nan")]),
        ("list", [{}, "x", 3, True]),
        ("texts", [3, True, {}, [3], [None], [["x"]], "", ["x", ""], [""], ["x"] * 1000]),
        ("object", [[], "x", 3, True]),
    ],
)
def test_what_is_refused(method, values):
    for value in values:
        assert refused(getattr(Fields({"a": value}, "b."), method), "a").param == "b.a"


def test_numbers_have_a_range():
    for value in (0, 2, 1.5, 1):
        assert Fields({"a": value}).number("a", 0, 2) == value
    assert Fields({}).number("a", 0, 2) is None
    for value in (-0.1, 2.1, HUGE, -HUGE, 1e300, True, "1", [], float("nan")):
        refused(Fields({"a": value}).number, "a", 0, 2)
    assert len(refused(Fields({"a": 10**4000}).number, "a", 0, 2).message) < 200


def test_choices_and_places():
    nested = Fields({"a": {"b": {"c": "x"}}}).object("a").object("b")
    assert nested.choice("c", ("x", "y")) == "x"
    error = refused(nested.choice, "c", ("y", "z"))
    assert (error.param, error.message) == ("a.b.c", "a.b.c is 'x', not one of y, z")
    assert Fields({}).object("a").choice("b", ("y",)) is None
    assert len(refused(Fields({"a": "x" * 10**6}).choice, "a", ("y",)).message) < 200


def test_the_first_of_several_names():
    assert Fields({"b": 1, "c": 2}).first(("a", "b", "c")) == "b"
    assert Fields({"a": None}).first(("a", "b")) == "a"


def test_sampling_is_what_is_asked_and_the_defaults_for_the_rest():
    assert Fields({}).sampling(DEFAULTS) == DEFAULTS
    asked = {"temperature": 0, "top_p": 1, "top_k": 0, "min_p": 0, "repetition_penalty": 1, "seed": 0}
    assert Fields(asked).sampling(DEFAULTS) == Sampling(temperature=0, seed=0)
    assert Fields({"repeat_penalty": 1.5}).sampling(DEFAULTS).repetition_penalty == 1.5
    # As servers of local models read them.
    assert Fields({"top_k": -1, "seed": -1}).sampling(DEFAULTS) == Sampling(0.5, 0.9, 0, 0.1, 1.1, None)
    assert Fields({"seed": -2}).sampling(DEFAULTS).seed == 2**64 - 2
    assert 0 < Fields({"top_p": 0}).sampling(DEFAULTS).top_p < 0.001


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("temperature", [-0.1, 2.1, "1", True, HUGE]),
        ("top_p", [-0.1, 1.1, HUGE]),
        ("min_p", [-0.1, 1.1]),
        ("top_k", [-2, 1.5, HUGE]),
        ("seed", [0.5, "1", HUGE, -HUGE]),
        ("repetition_penalty", [0, -1, HUGE, "x"]),
        ("frequency_penalty", [0.1, -2, "x", True, []]),
        ("presence_penalty", [1]),
        ("logit_bias", [{"50256": -100}, [1], "x"]),
    ],
)
def test_sampling_that_is_refused(name, values):
    for value in values:
        assert refused(Fields({name: value}).sampling, DEFAULTS).param == name


def test_what_changes_nothing_is_no_reason_to_refuse():
    neutral = {"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}}
    assert Fields(neutral).sampling(DEFAULTS) == DEFAULTS
    error = refused(Fields({"n": 2}).only_neutral, {"n": 1})
    assert error.message == "n is not supported: leave it out, or 1"
