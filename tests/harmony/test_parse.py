"""What models really emit, broken headers included: events, messages, and never any markup."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_mlx.errors import GptOssError
from gptoss_mlx.harmony.files import parse_file, render_file
from gptoss_mlx.harmony.messages import Message
from gptoss_mlx.harmony.parse import (
    NAMES,
    Content,
    IdParser,
    Parser,
    Preamble,
    Reasoning,
    Stop,
    ToolCall,
    pieces_of,
)
from gptoss_mlx.harmony.render import Special


def parse(pieces):
    parser = Parser()
    events = [event for piece in pieces for event in parser.feed(piece)]
    return [*events, *parser.finish()], parser.messages


def joined(events):
    """Events with neighbouring deltas of one kind joined: how text was cut must not matter."""
    out = []
    for event in events:
        if out and type(event) is type(out[-1]) and isinstance(event, Reasoning | Preamble | Content):
            out[-1] = type(event)(out[-1].text + event.text)
        else:
            out.append(event)
    return out


THINK = Reasoning("Think.")
CASES = {
    "analysis and final": (
        "<|channel|>analysis<|message|>Think.<|end|><|start|>assistant<|channel|>final<|message|>Hi<|return|>",
        [THINK, Content("Hi"), Stop("return")],
    ),
    "call, recipient behind the channel": (
        '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a":1}<|call|>',
        [ToolCall("f", '{"a":1}'), Stop("call")],
    ),
    "call, recipient in the role": (
        ' to=functions.f<|channel|>commentary <|constrain|>json<|message|>{"a":1}<|call|>',
        [ToolCall("f", '{"a":1}'), Stop("call")],
    ),
    "call after analysis, recipient in the role": (
        "<|channel|>analysis<|message|>Think.<|end|>"
        "<|start|>assistant to=functions.f<|channel|>commentary json<|message|>{}<|call|>",
        [THINK, ToolCall("f", "{}"), Stop("call")],
    ),
    "call on the analysis channel": (
        "<|channel|>analysis to=functions.f code<|message|>{}<|call|>",
        [ToolCall("f", "{}"), Stop("call")],
    ),
    "call on the final channel": (
        "<|channel|>final to=functions.f<|message|>{}<|call|>",
        [ToolCall("f", "{}"), Stop("call")],
    ),
    "call of a built-in tool": (
        "<|channel|>analysis to=python code<|message|>1+1<|call|>",
        [ToolCall("python", "1+1"), Stop("call")],
    ),
    "constraint glued to the recipient": (
        "<|channel|>commentary to=functions.f<|constrain|>json<|message|>{}<|call|>",
        [ToolCall("f", "{}"), Stop("call")],
    ),
    "call without terminator": (
        "<|channel|>commentary to=functions.f<|message|>{}",
        [ToolCall("f", "{}"), Stop("none")],
    ),
    "call ended as a message": (
        "<|channel|>commentary to=functions.f<|message|>{}<|end|>",
        [ToolCall("f", "{}"), Stop("end")],
    ),
    "two calls": (
        "<|channel|>commentary to=functions.f<|message|>{}<|call|>"
        "<|start|>assistant<|channel|>commentary to=functions.g<|message|>[]<|call|>",
        [ToolCall("f", "{}"), ToolCall("g", "[]"), Stop("call")],
    ),
    "preamble": (
        "<|channel|>commentary<|message|>First I look.<|end|>"
        "<|start|>assistant<|channel|>commentary to=functions.f<|message|>{}<|call|>",
        [Preamble("First I look."), ToolCall("f", "{}"), Stop("call")],
    ),
    "message to all": ("<|channel|>commentary to=all<|message|>Hi<|end|>", [Preamble("Hi"), Stop("end")]),
    "no message token": ("<|channel|>final I am sorry, no.<|return|>", [Content("I am sorry, no."), Stop("return")]),
    "no message token in analysis": (
        "<|channel|>analysis Think.<|end|><|start|>assistant<|channel|>final<|message|>Hi<|return|>",
        [THINK, Content("Hi"), Stop("return")],
    ),
    "free text behind the channel": (
        "<|channel|>final about the sum<|message|>4<|return|>",
        [Content("4"), Stop("return")],
    ),
    "channel glued to the recipient": (
        "<|channel|>commentaryto=functions.f<|message|>{}<|call|>",
        [ToolCall("f", "{}"), Stop("call")],
    ),
    "unknown channel": ("<|channel|>thoughts<|message|>Think.<|end|>", [THINK, Stop("end")]),
    "no channel": ("<|message|>Hi<|return|>", [Content("Hi"), Stop("return")]),
    "no header at all": ("Hi there<|return|>", [Content("Hi there"), Stop("return")]),
    "another's role": (
        "<|channel|>final<|message|>Hi<|end|><|start|>user<|message|>And you?<|end|>",
        [Content("Hi"), Reasoning("And you?"), Stop("end")],
    ),
    "doubled start": (
        "<|start|><|start|>assistant<|channel|>final<|message|>Hi<|return|>",
        [Content("Hi"), Stop("return")],
    ),
    "start and role repeated": (
        "<|start|>assistant<|channel|>final<|message|>Hi<|return|>",
        [Content("Hi"), Stop("return")],
    ),
    "end, then return": ("<|channel|>final<|message|>Hi<|end|><|return|>", [Content("Hi"), Stop("return")]),
    "next message without end": (
        "<|channel|>analysis<|message|>Think.<|start|>assistant<|channel|>final<|message|>Hi<|return|>",
        [THINK, Content("Hi"), Stop("return")],
    ),
    "next message without start": (
        "<|channel|>analysis<|message|>Think.<|channel|>final<|message|>Hi<|return|>",
        [THINK, Content("Hi"), Stop("return")],
    ),
    "message token twice": ("<|channel|>final<|message|><|message|>Hi<|return|>", [Content("Hi"), Stop("return")]),
    "white space between messages": (
        "<|channel|>analysis<|message|>Think.<|end|>\n<|start|>assistant<|channel|>final<|message|>Hi<|return|>",
        [THINK, Content("Hi"), Stop("return")],
    ),
    "broken off": ("<|channel|>final<|message|>Hi", [Content("Hi"), Stop("none")]),
    "broken off in a header": (
        "<|channel|>analysis<|message|>Think.<|end|><|start|>assistant<|channel|>fin",
        [THINK, Stop("none")],
    ),
    "end of text": ("<|channel|>final<|message|>Hi<|endoftext|>", [Content("Hi"), Stop("none")]),
    "empty answer": ("<|channel|>final<|message|><|return|>", [Stop("return")]),
    "nothing": ("", [Stop("none")]),
}


@pytest.mark.parametrize("name", CASES)
def test_events(name):
    text, expected = CASES[name]
    assert joined(parse(pieces_of(text))[0]) == expected


@pytest.mark.parametrize("name", CASES)
def test_where_text_is_cut_changes_nothing(name):
    text, expected = CASES[name]
    cut = [part for piece in pieces_of(text) for part in ([piece] if isinstance(piece, Special) else piece)]
    assert joined(parse(cut)[0]) == expected


def test_messages_keep_what_headers_said():
    text = (
        "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>"
        "<|start|>assistant to=python<|channel|>analysis code<|message|>1<|call|>"
    )
    assert parse(pieces_of(text))[1] == [
        Message("assistant", "{}", "commentary", "functions.f", "json"),
        Message("assistant", "1", "analysis", "python", "code"),
    ]


def test_a_special_name_in_ordinary_text_is_text():
    pieces = [Special("<|channel|>"), "commentary to=functions.f", Special("<|message|>"), '{"a": "<|call|>"}']
    assert parse([*pieces, Special("<|call|>")])[0] == [ToolCall("f", '{"a": "<|call|>"}'), Stop("call")]


def test_ids_and_utf8_split_across_tokens(tokenizer):
    ids = tokenizer.encode_markup("<|channel|>final<|message|>Grüße 👍 <|return|>")
    parser = IdParser(tokenizer)
    seen = [[*parser.feed(id_)] for id_ in ids]
    events = [event for step in [*seen, [*parser.finish()]] for event in step]
    assert joined(events) == [Content("Grüße 👍 "), Stop("return")]
    assert all("\ufffd" not in event.text for event in events if isinstance(event, Content))


PIECES = st.lists(
    st.one_of(
        st.sampled_from(NAMES),
        st.sampled_from(
            ["assistant", "analysis", "final", " to=functions.f", " json", "commentary", "user", "\n", "to="]
        ),
        st.text(max_size=8),
    ),
    max_size=30,
)


@given(PIECES)
def test_anything_parses_and_no_markup_leaks(pieces):
    """Text that contains no `<` stays free of it, whatever tokens surround it."""
    pieces = [piece if isinstance(piece, Special) else piece.replace("<", "") for piece in pieces]
    events, messages = parse(pieces)
    assert isinstance(events[-1], Stop)
    texts = [event.text for event in events if isinstance(event, Reasoning | Preamble | Content)]
    texts += [event.name + event.arguments for event in events if isinstance(event, ToolCall)]
    assert not any("<" in text for text in texts)
    assert sum(map(len, texts)) <= sum(len(piece) for piece in pieces)
    assert all(isinstance(message.content, str) for message in messages)


@given(PIECES, st.data())
def test_any_cut_of_the_text_gives_the_same(pieces, data):
    cut = []
    for piece in pieces:
        if isinstance(piece, Special) or len(piece) < 2:
            cut.append(piece)
        else:
            at = data.draw(st.integers(1, len(piece) - 1))
            cut += [piece[:at], piece[at:]]
    whole, parted = parse(pieces), parse(cut)
    assert joined(whole[0]) == joined(parted[0])
    assert whole[1] == parted[1]


@pytest.mark.parametrize("opening", ["<|channel|>final<|message|>", "<|channel|>final ", ""])
def test_time_is_linear(opening):
    def seconds(count):
        pieces = [*pieces_of(opening), *["word "] * count]
        started = time.perf_counter()
        parse(pieces)
        return time.perf_counter() - started

    seconds(1000)
    # The best of three: what else the machine does, and Python's collector, only adds.
    short, long = (min(seconds(count) for _ in range(3)) for count in (10_000, 100_000))
    assert long < 30 * max(short, 0.001)


def test_parse_file(tmp_path):
    path = tmp_path / "output.txt"
    path.write_text(
        "<|channel|>analysis<|message|>Think.<|end|><|start|>assistant<|channel|>commentary<|message|>Plan.<|end|>"
        "<|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>"
    )
    assert parse_file(path) == {
        "messages": [
            {"channel": "analysis", "recipient": None, "content_type": None, "content": "Think."},
            {"channel": "commentary", "recipient": None, "content_type": None, "content": "Plan."},
            {"channel": "commentary", "recipient": "functions.f", "content_type": "json", "content": "{}"},
        ],
        "reasoning": "Think.",
        "content": "Plan.",
        "tool_calls": [{"name": "f", "arguments": "{}"}],
        "stop": "call",
    }


@pytest.mark.parametrize("data", [b"{", b"\xff\xfe", b'{"messages": 3}', b"[" * 100_000])
def test_files_that_are_no_conversations(tmp_path, data):
    path = tmp_path / "conversation.json"
    path.write_bytes(data)
    with pytest.raises(GptOssError, match=r"conversation\.json") as error:
        render_file(path)
    assert "\n" not in str(error.value)


def test_files_that_are_not_there(tmp_path):
    for read in (render_file, parse_file):
        with pytest.raises(GptOssError, match="No such file"):
            read(tmp_path / "nothing")


def test_render_file(tmp_path):
    path = tmp_path / "conversation.json"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "Hi"}]}))
    assert render_file(path).endswith("<|start|>user<|message|>Hi<|end|><|start|>assistant")
