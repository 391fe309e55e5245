"""What models really emit, broken headers included: events, messages, and never any markup."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_mlx.engine.special_tokens import NAMES, Special
from gptoss_mlx.harmony.messages import Message
from gptoss_mlx.harmony.parse import Content, IdParser, Parser, Preamble, Reasoning, Stop, ToolCall, pieces_of
from harmony.counting import lines_run
from harmony.outputs_by_hand import ANALYSIS, CASES, COMMENTARY, HI


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


@settings(deadline=None)
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


@settings(deadline=None)
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


OPENINGS = ["<|channel|>final<|message|>", "<|channel|>final ", ""]


def words(opening, count):
    return [*pieces_of(opening), *["word "] * count]


@pytest.mark.timing
@pytest.mark.parametrize("opening", OPENINGS)
def test_time_is_linear(opening):
    def seconds(count):
        pieces = words(opening, count)
        started = time.perf_counter()
        parse(pieces)
        return time.perf_counter() - started

    seconds(1000)
    # The best of three: what else the machine does, and Python's collector, only adds.
    short, long = (min(seconds(count) for _ in range(3)) for count in (10_000, 100_000))
    assert long < 30 * max(short, 0.001)


@pytest.mark.parametrize("opening", OPENINGS)
def test_work_is_linear(opening):
    short, long = (lines_run(lambda count=count: parse(words(opening, count))) for count in (200, 2_000))
    assert long < 11 * short


def test_what_begins_a_message_is_told():
    events, _ = parse([*pieces_of(f"{ANALYSIS}<|start|>assistant{COMMENTARY}"), "We", "ll", *pieces_of(f"<|end|>{HI}")])
    assert [event.begins for event in events[:-1]] == [True, True, False, True]


def without_header(text):
    parser = Parser(headers_needed=(Content, Preamble))
    events = [event for piece in pieces_of(text) for event in parser.feed(piece)]
    return joined([*events, *parser.finish()])[:-1], parser.messages


@pytest.mark.parametrize(
    "text",
    [
        "364<|return|>",
        "364",
        "364<|channel|>",
        "364<|message|>",
        "<|start|>assistant 364<|return|>",
        "<|channel|>final 364 and more<|return|>",
        "<|channel|>final 364 and more",
        "<|channel|>final<|channel|>final 364<|end|>",
        "<|channel|>finally 364<|end|>",
        "<|channel|>commentary 364<|end|>",
        "<|channel|>final <|constrain|>json 364<|return|>",
        "<|constrain|>json 364<|return|>",
        "<|end|>364<|return|>",
        "<|end|>364<|start|>assistant",
    ],
)
def test_where_headers_are_needed_nothing_else_is_told(text):
    assert without_header(text) == ([], [])


def test_where_headers_are_needed_all_else_is_the_same():
    for text, expected in (CASES["analysis and final"], CASES["two calls"], CASES["preamble"]):
        assert without_header(text)[0] == expected[:-1]
