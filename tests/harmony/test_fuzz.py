"""Any stream of ids through the parser, and any text of others through the renderer."""

import os
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_mlx.demo import CHECKPOINT
from gptoss_mlx.engine.tokenizer import Tokenizer
from gptoss_mlx.harmony.messages import Conversation, Message, Tool, call, conversation_from_json, result
from gptoss_mlx.harmony.parse import Content, IdParser, Stop
from gptoss_mlx.harmony.render import render_ids, render_text
from harmony.counting import lines_run
from harmony.fuzz import check, joined, stream

DEMO = Tokenizer.load(CHECKPOINT)


@pytest.fixture(scope="module")
def o200k():
    folder = Path(os.environ.get("GPTOSS_O200K", ""))
    if not (folder / "tokenizer.json").is_file():
        pytest.skip("GPTOSS_O200K does not name a folder with the o200k vocabulary")
    return Tokenizer.load(folder)


def parsed(ids, tokenizer):
    parser = IdParser(tokenizer)
    return joined([event for id_ in ids for event in parser.feed(id_)] + [*parser.finish()])


@settings(deadline=None)
@given(st.randoms(use_true_random=False))
def test_any_ids(random):
    check(stream(random, DEMO), DEMO)


def test_any_ids_of_the_published_vocabulary(o200k):
    @settings(deadline=None)
    @given(st.randoms(use_true_random=False))
    def any_ids(random):
        check(stream(random, o200k), o200k)

    any_ids()


@settings(deadline=None)
@given(st.text(min_size=1).filter(lambda text: "\ufffd" not in text))
def test_text_arrives_as_it_is_however_it_was_split(tokenizer, text):
    """With a merge where the model likes one, or byte by byte."""
    for by in (DEMO, tokenizer):
        ids = [*by.encode_markup("<|channel|>final<|message|>"), *by.encode(text), by.special("<|return|>")]
        assert parsed(ids, by) == [Content(text), Stop("return")]


def test_a_character_arrives_behind_bytes_that_are_none(tokenizer):
    ids = tokenizer.encode_markup("<|message|>") + tokenizer.encode("\ufffd\ufffd👍")
    assert parsed(ids, tokenizer) == [Content("\ufffd\ufffd👍"), Stop("none")]


ENDLESS = {
    "answer": ("<|channel|>final<|message|>", " word"),
    "call": ("<|channel|>commentary to=functions.f<|message|>", " word"),
    "role": ("", " word"),
    "channel": ("<|channel|>", "a"),
    "blanks in a header": ("<|channel|>final", " "),
    "recipients": ("", " to="),
    "channels": ("", "<|channel|>x"),
    "constraints": ("<|channel|>final", "<|constrain|>json"),
    "starts": ("", "<|start|>"),
    "messages": ("", "<|start|>assistant<|channel|>final<|message|>a<|end|>"),
    "messages without start": ("", "<|channel|>final<|message|>a"),
    "blanks between messages": ("<|message|>a<|end|>", "\n"),
    "half characters": ("<|message|>", "\xff"),
    "noise between messages": ("<|message|>a<|end|>", " 364"),
    "marks in a channel": ("<|channel|>commentary", "?."),
    "recipients in a channel": ("<|channel|>commentary", " to=functions.f-"),
    "results": ("", "<|start|>f to=assistant<|message|>a<|end|>"),
}


def endless(name, tokenizer, count):
    opening, more = ENDLESS[name]
    more = tokenizer.encode("👍")[:2] if more == "\xff" else tokenizer.encode_markup(more)
    return (tokenizer.encode_markup(opening) + more * count)[:count]


def feed_all(parser, ids):
    for id_ in ids:
        for _ in parser.feed(id_):
            pass
    for _ in parser.finish():
        pass


@pytest.mark.timing
@pytest.mark.parametrize("name", ENDLESS)
def test_time_grows_with_the_text(name):
    def seconds(count):
        ids, parser = endless(name, DEMO, count), IdParser(DEMO)
        started = time.process_time()
        feed_all(parser, ids)
        return time.process_time() - started

    # The best of three: Python's collector only adds.
    short, long = (min(seconds(count) for _ in range(3)) for count in (2_000, 20_000))
    assert long < 30 * max(short, 0.001)


@pytest.mark.parametrize("name", ENDLESS)
def test_work_grows_with_the_text(name):
    def lines(count):
        ids, parser = endless(name, DEMO, count), IdParser(DEMO)
        return lines_run(lambda: feed_all(parser, ids))

    assert lines(2_000) < 11 * lines(200)


OFTEN = ("answer", "role", "messages without start", "half characters", "recipients in a channel")


@pytest.mark.parametrize(
    "name", [name if name in OFTEN else pytest.param(name, marks=pytest.mark.slow) for name in ENDLESS]
)
def test_memory_grows_with_the_text(name):
    ids, parser = endless(name, DEMO, 10_000), IdParser(DEMO)
    tracemalloc.start()
    feed_all(parser, ids)
    held, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 300 * len(ids)
    said = sum(300 + sum(len(value or "") for value in vars(message).values()) for message in parser.parser.messages)
    assert held < 2 * said + 150_000


# What makes a special token of a text is never what is written in it.
NAMES = [*DEMO.specials.values(), "<|reserved_200013|>", "<|start|>system<|message|>", "<|end", "|>", "<|", "<|END|>"]
HOSTILE = st.lists(st.sampled_from([*NAMES, "x", "é", " ", "\n", '"', "functions."]), min_size=1).map("".join)


def conversation_with(text: str) -> Conversation:
    """The text wherever a text of others comes to stand."""
    parameters = {
        "type": "object",
        "description": text,
        "properties": {
            text: {"type": "string", "description": text, "title": text, "default": text, "examples": [text]},
            "choice": {"type": "string", "enum": [text, "x"], "default": text},
            "either": {"oneOf": [{"type": "array", "items": {"type": "string", "description": text}, "default": text}]},
        },
        "required": [text],
    }
    return Conversation(
        messages=(
            Message("developer", text),
            Message("user", text),
            Message("assistant", text, channel="analysis"),
            Message("assistant", text, channel="commentary"),
            call(text, text),
            result(text, text),
            call("python", text),
            result("python", text),
            Message("assistant", text, channel="commentary", recipient=text),
            Message("developer", text),
            Message("user", text),
        ),
        tools=(Tool(text, text, parameters),),
        builtin_tools=("python", "browser"),
        current_date=text,
        knowledge_cutoff=text,
        model_identity=text,
    )


def assert_only_structure_is_special(conversation, harmless, tokenizer):
    ids, expected = render_ids(conversation, tokenizer), render_ids(harmless, tokenizer)
    special = tokenizer.specials
    assert [special[id_] for id_ in ids if id_ in special] == [special[id_] for id_ in expected if id_ in special]
    assert tokenizer.decode(ids) == render_text(conversation)


@pytest.mark.parametrize("texts", [25, pytest.param(100, marks=pytest.mark.slow)])
def test_text_of_others_never_becomes_a_special_token(texts):
    @settings(deadline=None, max_examples=texts)
    @given(HOSTILE)
    def any_text(text):
        assert_only_structure_is_special(conversation_with(text), conversation_with("x"), DEMO)

    any_text()


def test_nor_does_a_content_type(tokenizer):
    written = tokenizer.encode("<|constrain|>json")  # letter by letter, as a model may
    ids = [tokenizer.special("<|channel|>"), *tokenizer.encode("final "), *written, tokenizer.special("<|message|>")]
    parser = IdParser(tokenizer)
    feed_all(parser, [*ids, *tokenizer.encode("{}")])
    (message,) = parser.parser.messages
    harmless = Conversation((replace(message, content_type="json"),))
    assert_only_structure_is_special(Conversation((message,)), harmless, tokenizer)


def test_nor_in_the_published_vocabulary(o200k):
    text = "".join([*NAMES, *o200k.specials.values()])
    assert_only_structure_is_special(conversation_with(text), conversation_with("x"), o200k)


def chat_completions(text: str) -> dict:
    function = {"name": "f" + text, "description": text, "parameters": {"type": "object", "properties": {text: {}}}}
    return {
        "messages": [
            {"role": "system", "content": text},
            {"role": "user", "content": [{"type": "text", "text": text}, {"type": "text", "text": text}]},
            {
                "role": "assistant",
                "content": text,
                "reasoning": text,
                "tool_calls": [{"id": text, "function": {"name": "f" + text, "arguments": text}}],
            },
            {"role": "tool", "tool_call_id": text, "content": text},
        ],
        "tools": [{"type": "function", "function": function}],
        "current_date": text,
    }


@settings(deadline=None)
@given(HOSTILE)
def test_nor_does_text_in_a_conversation_that_is_read(text):
    harmless = conversation_from_json(chat_completions("x"))
    assert_only_structure_is_special(conversation_from_json(chat_completions(text)), harmless, DEMO)


@settings(deadline=None)
@given(HOSTILE)
def test_what_a_model_wrote_is_rendered_as_it_was_read(text):
    """Names of special tokens that a model spelled out stay text on the way back."""
    written = [*DEMO.encode_markup("<|channel|>final<|message|>"), *DEMO.encode(text), DEMO.special("<|return|>")]
    parser = IdParser(DEMO)
    feed_all(parser, written)
    (message,) = parser.parser.messages
    assert message == Message("assistant", text, "final")
    harmless = Conversation((replace(message, content="x"),))
    assert_only_structure_is_special(Conversation((message,)), harmless, DEMO)
