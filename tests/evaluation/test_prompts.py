"""Exact match: what counts as right, what a file of prompts may hold, and what is wrong with one."""

import gzip
import json

import pytest

from evaluate import HELD_OUT, THRESHOLDS, prompt_of, samples
from export_held_out import COUNT, lines
from gptoss_mlx import GptOssError, load
from gptoss_mlx.demo import HELD_OUT as HELD_OUT_FILE
from gptoss_mlx.demo import HELD_OUT_THRESHOLDS
from gptoss_mlx.engine.tokenizer import Tokenizer
from gptoss_mlx.evaluation.prompts import Asking, Call, Prompts, Reply, Share, is_right, read_prompts
from gptoss_mlx.harmony.render import encode

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Gets the weather of a place.",
            "parameters": {"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]},
        },
    }
]
ASKED = [{"role": "user", "content": "What is the weather in Bermi?"}]
REASONING = "I need the function get_weather: location is Bermi."
CALL = {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": '{"location": "Bermi"}'}}
ANSWERED = [
    *ASKED,
    {"role": "assistant", "reasoning": REASONING, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "1", "content": '{"temperature": 15, "sky": "sunny"}'},
]
PROMPTS = [
    {"prompt": "What is 12 + 30?", "answer": " 12 + 30 = 42\n", "part": "sums"},
    {"prompt": "What is 12 + 31?", "answer": "12 + 31 = 44", "part": "sums"},
    {
        "prompt": {"messages": ASKED, "tools": TOOLS},
        "answer": {"name": "get_weather", "arguments": {"location": "Bermi"}},
        "part": "tools",
    },
    {"prompt": {"messages": ANSWERED, "tools": TOOLS}, "answer": "It is 15 degrees and sunny in Bermi."},
]


@pytest.fixture(scope="module")
def tokenizer(demo_folder):
    return Tokenizer.load(demo_folder)


@pytest.fixture(scope="module")
def read(tokenizer):
    def read(*prompts, **asking):
        return read_prompts([json.dumps(each).encode() for each in prompts], "some.jsonl", tokenizer, Asking(**asking))

    return read


def test_answers_and_calls(demo_folder, tokenizer, read):
    prompts, model, heard = Prompts("prompts", read(*PROMPTS), tokenizer, max_tokens=200), load(demo_folder), []
    values = {index: prompts.measure(model, index, heard.append) for index in range(len(PROMPTS))}
    assert max(heard) == max(item.tokens for item in prompts.items)
    found = prompts.results(values)
    assert (found.all.right, found.all.total, found.prompts) == (3, 4, 4)
    assert [(part.name, part.right, part.total) for part in found.parts] == [("sums", 1, 2), ("tools", 1, 1)]
    (wrong,) = found.wrong
    assert (wrong.name, wrong.part, wrong.expected) == ("line 2", "sums", "12 + 31 = 44")
    assert (wrong.reply["answer"], wrong.reply["stop"]) == ("12 + 31 = 43", "return")


def test_an_answer_that_was_cut_off_is_wrong(demo_folder, tokenizer, read):
    prompts = Prompts("prompts", read(PROMPTS[0]), tokenizer, max_tokens=20)
    assert not prompts.measure(load(demo_folder), 0, lambda count: None)["right"]


def test_what_is_right():
    bermi = Call("get_weather", {"location": "Bermi", "days": 1})
    same = Call("get_weather", {"days": 1, "location": "Bermi"})
    assert is_right(Reply(" yes ", [], "return"), "yes")
    assert not is_right(Reply("yes.", [], "return"), "yes")
    assert not is_right(Reply("yes", [], "none"), "yes")
    assert is_right(Reply("", [same], "call"), bermi)
    assert not is_right(Reply("", [same, same], "call"), bermi)
    assert not is_right(Reply("", [Call("get_weather", {})], "call"), bermi)
    assert not is_right(Reply("", [None], "call"), bermi)
    assert not is_right(Reply("", [Call("get_weather", {"location": "Bermi", "days": True})], "call"), bermi)
    assert not is_right(Reply("", [same], "none"), bermi)


def test_how_a_prompt_is_asked(tokenizer, read):
    def asked(prompt, **asking):
        return tokenizer.decode(read(prompt, **asking)[0].ids)

    assert "Reasoning: high" in asked(PROMPTS[0], reasoning="high")
    assert "Current date" not in asked(PROMPTS[0])
    assert "# Instructions\n\nBe brief." in asked(PROMPTS[0], instructions="Be brief.")
    own = {"messages": [{"role": "system", "content": "Be kind."}, *ASKED], "reasoning_effort": "low"}
    text = asked({"prompt": own, "answer": ""}, reasoning="high", instructions="Be brief.")
    assert "Be kind." in text
    assert "Be brief." not in text
    assert "Reasoning: low" in text
    assert asked(PROMPTS[0], reasoning="none").endswith("<|start|>assistant<|channel|>final<|message|>")
    assert asked(PROMPTS[2], reasoning="none").endswith("<|channel|>analysis<|message|><|end|><|start|>assistant")
    plain = asked(PROMPTS[0])
    assert read({"rendered": plain, "answer": ""})[0].ids == read(PROMPTS[0])[0].ids
    assert asked({"prompt": "<|end|>", "answer": ""}).count("<|end|>") == plain.count("<|end|>") + 1
    assert read({"prompt": "<|end|>", "answer": ""})[0].ids.count(tokenizer.special("<|end|>")) == plain.count(
        "<|end|>"
    )


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "Expecting property name"),
        ("[1]", 'a JSON object with "prompt" or "rendered", and "answer"'),
        ('{"prompt": "x"}', 'and "answer"'),
        ('{"prompt": "x", "rendered": "x", "answer": "x"}', 'with "prompt" or "rendered"'),
        ('{"prompt": "x", "answer": "x", "weight": 2}', "no field 'weight'"),
        ('{"prompt": "x", "answer": "x", "part": 1}', '"part" is not text'),
        ('{"prompt": "x", "answer": 42}', "neither text nor a call"),
        ('{"prompt": "x", "answer": {"name": "f", "arguments": "{}"}}', "neither text nor a call"),
        ('{"prompt": 7, "answer": "x"}', "a conversation is a JSON object"),
        ('{"prompt": {"messages": [{"role": "robot"}]}, "answer": "x"}', "robot"),
        ('{"rendered": "Hello", "answer": "x"}', "no <|start|>"),
        ('{"rendered": ["x"], "answer": "x"}', '"rendered" is not text'),
        ('{"prompt": "\\ud800", "answer": "x"}', "surrogates"),
        ('{"prompt": "x", "answer": "x", "answer": "y"}', "twice"),
    ],
)
def test_a_line_that_is_wrong_is_named(tokenizer, line, problem):
    good = json.dumps(PROMPTS[0]).encode()
    with pytest.raises(GptOssError) as error:
        read_prompts([good, b"\n", line.encode()], "some.jsonl", tokenizer, Asking())
    assert str(error.value).startswith("some.jsonl, line 3: ")
    assert problem in str(error.value)
    assert "\n" not in str(error.value)


def test_no_prompts(tokenizer):
    with pytest.raises(GptOssError, match="no prompts"):
        read_prompts([b"\n"], "some.jsonl", tokenizer, Asking())


@pytest.mark.parametrize(("right", "total"), [(0, 10), (10, 10), (47, 50), (199, 200)])
def test_wilson(right, total):
    """Its ends are the shares p from which the one that was found is 1.96 standard deviations of p away."""
    share = Share(None, right, total)
    low, high = share.interval
    for p in (low, high):
        assert abs(share.share - p) == pytest.approx(1.959964 * (p * (1 - p) / total) ** 0.5, abs=1e-6)
    assert 0 <= low < high <= 1
    assert low - 1e-9 <= share.share <= high + 1e-9


@pytest.mark.parametrize("encoded", [4, pytest.param(COUNT, marks=pytest.mark.slow)])
def test_the_held_out_prompts_are_what_its_script_writes(tokenizer, encoded):
    """All of them; and as tokens, so many of each part."""
    with gzip.open(HELD_OUT_FILE) as file:
        shipped = [json.loads(line) for line in file]
    assert shipped == list(lines())
    assert json.loads(HELD_OUT_THRESHOLDS.read_text()) == THRESHOLDS
    pieces = [encode(prompt_of(part, sample), tokenizer) for part in THRESHOLDS for sample in samples(part, encoded)]
    few = [line for number, line in enumerate(shipped) if number % COUNT < encoded]
    assert [tokenizer.encode_markup(line["rendered"]) for line in few] == pieces
    assert HELD_OUT_FILE.stat().st_size < 250_000
    assert set(THRESHOLDS) <= set(HELD_OUT)
