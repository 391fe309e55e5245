"""What models really emit, broken headers included: events, messages, and never any markup."""

import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_mlx.engine.special_tokens import NAMES, Special
from gptoss_mlx.errors import GptOssError
from gptoss_mlx.harmony.files import parse_file, render_file
from gptoss_mlx.harmony.messages import Message
from gptoss_mlx.harmony.parse import Content, IdParser, Parser, Preamble, Reasoning, Stop, ToolCall, pieces_of


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
ANALYSIS = "<|channel|>analysis<|message|>Think.<|end|>"
COMMENTARY = "<|channel|>commentary<|message|>"
HI = "<|channel|>final<|message|>Hi<|return|>"
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
    # Text that belongs to no message.
    "number between messages": (
        f"{ANALYSIS} 364 <|start|>assistant<|channel|>final<|message|>4<|return|>",
        [THINK, Content("4"), Stop("return")],
    ),
    "text between messages, next one without start": (
        f"{ANALYSIS} 364 <|channel|>final<|message|>4<|return|>",
        [THINK, Content("4"), Stop("return")],
    ),
    "text ended as a message": (
        f"{ANALYSIS}Now.<|end|><|start|>assistant<|channel|>final<|message|>4<|return|>",
        [THINK, Content("4"), Stop("return")],
    ),
    "text behind start and role": (
        f"{ANALYSIS}<|start|>assistant Now.<|start|>assistant<|channel|>final<|message|>4<|return|>",
        [THINK, Content("4"), Stop("return")],
    ),
    "text before start": (f"Sure!<|start|>assistant{HI}", [Content("Hi"), Stop("return")]),
    "arguments without header": (f'{ANALYSIS}{{"a": 1}}<|call|>', [THINK, Stop("call")]),
    "answer without header": (f"{ANALYSIS}It is 4.<|return|>", [THINK, Content("It is 4."), Stop("return")]),
    "answer behind the role alone": (
        f"{ANALYSIS}<|start|>assistant It is 4.<|return|>",
        [THINK, Content("It is 4."), Stop("return")],
    ),
    "answer without header, broken off": (f"{ANALYSIS}It is", [THINK, Content("It is"), Stop("none")]),
    "answer without letters": ("👍<|return|>", [Content("👍"), Stop("return")]),
    "text before the first header": (f"some words {ANALYSIS}", [Preamble("some words"), THINK, Stop("end")]),
    "text before the first header, role repeated": (
        f"<|start|>assistant some words {ANALYSIS}",
        [Preamble("some words"), THINK, Stop("end")],
    ),
    "text before the first message": (
        "Well. <|message|>Hi<|return|>",
        [Preamble("Well."), Content("Hi"), Stop("return")],
    ),
    "word before the first channel": (f"Well. {HI}", [Preamble("Well."), Content("Hi"), Stop("return")]),
    "text before the first call": (
        f"I will look. to=functions.f{COMMENTARY}{{}}<|call|>",
        [Preamble("I will look."), ToolCall("f", "{}"), Stop("call")],
    ),
    "text behind a channel that is none": ("<|channel|>We think<|end|>", [Reasoning("We think"), Stop("end")]),
    "channel's name before the first header": (f"final{HI}", [Content("Hi"), Stop("return")]),
    "channel's name between messages": (f"{ANALYSIS}final{HI}", [THINK, Content("Hi"), Stop("return")]),
    "channel's name between calls": (
        "<|channel|>commentary to=functions.f<|message|>{}<|call|>commentary"
        "<|channel|>commentary to=functions.g<|message|>{}<|call|>",
        [ToolCall("f", "{}"), ToolCall("g", "{}"), Stop("call")],
    ),
    "channel's name for a role": ("<|start|>final<|message|>Hi<|return|>", [Content("Hi"), Stop("return")]),
    "channel's name for a role, with a recipient": (
        "<|start|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>",
        [ToolCall("f", "{}"), Stop("call")],
    ),
    "another's role without start": (
        "<|channel|>final<|message|>Hi<|end|>user<|message|>And you?<|end|>",
        [Content("Hi"), Reasoning("And you?"), Stop("end")],
    ),
    "role with words": ("<|start|>Well then<|channel|>final<|message|>Hi<|return|>", [Content("Hi"), Stop("return")]),
    # A tool's role.
    "role is a tool that is called": (
        f'{ANALYSIS}<|start|>bash<|channel|>commentary json<|message|>{{"cmd":"ls"}}<|call|>',
        [THINK, ToolCall("bash", '{"cmd":"ls"}'), Stop("call")],
    ),
    "role is a tool's full name": (
        "<|start|>functions.f<|channel|>commentary json<|message|>{}<|call|>",
        [ToolCall("f", "{}"), Stop("call")],
    ),
    "role is a tool that calls another": (
        f"<|start|>bash to=functions.f{COMMENTARY}{{}}<|call|>",
        [ToolCall("f", "{}"), Stop("call")],
    ),
    "mark behind the role": (f"<|start|>assistant:{HI}", [Content("Hi"), Stop("return")]),
    "result": (f"<|start|>functions.f to=assistant{COMMENTARY}sun<|end|>", [Stop("end")]),
    "result without recipient": (f"<|start|>functions.f{COMMENTARY}sun<|end|>", [Stop("end")]),
    "result without start": (f"{ANALYSIS}functions.f to=assistant{COMMENTARY}sun<|end|>", [THINK, Stop("end")]),
    "result of a built-in tool": ("<|start|>python to=assistant<|channel|>analysis<|message|>4<|end|>", [Stop("end")]),
    "result that ends as a call": (f"<|start|>functions.f to=assistant{COMMENTARY}sun<|call|>", [Stop("call")]),
    "result without message token": ("<|start|>bash to=assistant<|channel|>commentary the sun<|end|>", [Stop("end")]),
    # Headers that are cut off say nothing.
    **{
        f"cut off: {header}": (f"{ANALYSIS}<|start|>{header}", [THINK, Stop("none")])
        for header in (
            "assistant<|channel|>commentary to=",
            "assistant<|channel|>commentary t",
            "assistant<|channel|>commentary to=functions.f",
            "assistant<|channel|>commentary to=functions.f <|constrain|>js",
            "assistant<|channel|>commentary to=functions.f js",
            "assistant<|channel|>commentary json to=",
            "assistant<|channel|>comment",
            "assistant to=functions",
            "assistant to=",
            "assis",
            "functions.get_w",
            "functions.f to=assi",
            "bash to=",
            "user<|channel|>",
        )
    },
    "channel's name twice, no message token": (
        "<|channel|>commentary?commentary?Hi<|end|>",
        [Preamble("Hi"), Stop("end")],
    ),
    "channel's name only": ("<|channel|>commentary commentary<|end|>", [Stop("end")]),
    "channel twice": ("<|channel|>commentary<|channel|>commentary<|message|>Hi<|end|>", [Preamble("Hi"), Stop("end")]),
    "to= in a text without message token": (
        "<|channel|>final I have set to=5, to=functions.f too.<|return|>",
        [Content("I have set to=5, to=functions.f too."), Stop("return")],
    ),
    "prose for a constraint": (
        "<|channel|>commentary to=functions.f <|constrain|>write: edit it.<|end|>",
        [ToolCall("f", "write: edit it."), Stop("end")],
    ),
    "words between constraint and arguments": (
        '<|channel|>commentary to=functions.f <|constrain|>json as asked {"a": 1}<|call|>',
        [ToolCall("f", 'as asked {"a": 1}'), Stop("call")],
    ),
    "constraint and arguments": (
        '<|channel|>commentary to=functions.f <|constrain|>json{"a": 1}<|call|>',
        [ToolCall("f", '{"a": 1}'), Stop("call")],
    ),
    "recipient and arguments": (
        '<|channel|>commentary to=functions.f{"a": 1}<|call|>',
        [ToolCall("f", '{"a": 1}'), Stop("call")],
    ),
    # A call in a complete header counts wherever it stands.
    **{
        f"call: {header}": (f"{header}<|message|>{{}}<|call|>", [ToolCall("f", "{}"), Stop("call")])
        for header in (
            "<|channel|>commentary? to=functions.f json",
            "<|channel|>commentary, to=functions.f <|constrain|>json",
            "<|channel|>\u2013\u2013commentary to=functions.f json",
            "<|channel|>...commentary: to=functions.f",
            "<|channel|>commentary json to=functions.f",
            "<|channel|>commentary jsonto=functions.f",
            "<|channel|>commentary <|constrain|>json to=functions.f",
            "<|channel|>commentary for the user to=functions.f",
            "<|channel|>to=functions.f commentary",
            "<|channel|>analysis code to=functions.f",
            "<|channel|>final json to=functions.f",
            "<|channel|>commentary<|channel|>commentary to=functions.f",
            "<|channel|>commentary functions.f",
            "<|channel|>commentary functions.f json",
            "<|channel|>functions.f",
            '<|channel|>commentary to=functions.f{"a": 1}',
            "<|channel|>commentary to=functions.f. json",
            "<|channel|>commentary to=functions.f(json)",
            '<|channel|>commentary to="functions.f" json',
            "<|channel|>commentary to = functions.f json",
            "<|channel|>commentary to=f json",
            "<|channel|>commentary_to=functions.f",
            "<|channel|>commentary to functions.f",
            "<|channel|>commentary to: functions.f json",
            "<|channel|>commentary recipient=functions.f",
            "<|channel|>commentary (json) to=functions.f",
            " to=assistant<|channel|>commentary to=functions.f",
            "<|start|>assistant to=assistant<|channel|>commentary to=functions.f json",
            "<|channel|>commentary to=user to=functions.f",
            "<|start|><|start|>assistant I will look to=functions.f<|channel|>commentary",
            "<|start|>I will look to=functions.f<|channel|>commentary",
            "<|start|>assistantcommentary to=functions.f",
            "<|start|>assistant functions.f<|channel|>commentary",
            "commentary to=functions.f",
            "functions.f<|channel|>commentary json",
        )
    },
    "a tool that is spoken of": (
        f"{ANALYSIS}I have called functions.f for that.{HI}",
        [THINK, Content("Hi"), Stop("return")],
    ),
    "a tool that is spoken of in a header": (
        "<|channel|>final about functions.f<|message|>Hi<|return|>",
        [Content("Hi"), Stop("return")],
    ),
    "call without start": (
        f"{ANALYSIS} to=functions.f{COMMENTARY}{{}}<|call|>",
        [THINK, ToolCall("f", "{}"), Stop("call")],
    ),
    "call without start behind prose": (
        f"{ANALYSIS}I will look. to=functions.f{COMMENTARY}{{}}<|call|>",
        [THINK, ToolCall("f", "{}"), Stop("call")],
    ),
    "call of python behind words": (
        "<|channel|>analysis code to=python<|message|>1+1<|call|>",
        [ToolCall("python", "1+1"), Stop("call")],
    ),
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
            {"role": "assistant", "channel": "analysis", "recipient": None, "content_type": None, "content": "Think."},
            {"role": "assistant", "channel": "commentary", "recipient": None, "content_type": None, "content": "Plan."},
            {
                "role": "assistant",
                "channel": "commentary",
                "recipient": "functions.f",
                "content_type": "json",
                "content": "{}",
            },
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


OUTPUTS = Path(__file__).with_name("outputs")


@pytest.mark.parametrize("path", sorted(OUTPUTS.glob("*.txt")), ids=lambda path: path.stem)
def test_outputs_that_models_gave(path):
    expected = json.loads(path.with_suffix(".expected.json").read_text())
    assert {name: parse_file(path)[name] for name in expected} == expected


LOG = (
    "<|start|>system<|message|>You are it.<|end|><|start|>developer<|message|># Tools<|end|>"
    "<|start|>user<|message|>Weather?<|end|>"
    "<|start|>assistant<|channel|>analysis<|message|>I ask.<|end|>"
    "<|start|>assistant to=functions.f<|channel|>commentary <|constrain|>json<|message|>{}<|call|>"
    "<|start|>functions.f to=assistant<|channel|>commentary<|message|>sun<|end|>"
    "<|start|>assistant<|channel|>final<|message|>Sun.<|return|>"
)


def test_a_log_keeps_roles_apart(tmp_path):
    path = tmp_path / "log.txt"
    path.write_text(LOG)
    told = parse_file(path)
    assert [(message["role"], message["content"]) for message in told.pop("messages")] == [
        ("system", "You are it."),
        ("developer", "# Tools"),
        ("user", "Weather?"),
        ("assistant", "I ask."),
        ("assistant", "{}"),
        ("functions.f", "sun"),
        ("assistant", "Sun."),
    ]
    calls = [{"name": "f", "arguments": "{}"}]
    assert told == {"reasoning": "I ask.", "content": "Sun.", "tool_calls": calls, "stop": "return"}


@pytest.mark.parametrize("result", ["functions.f to=assistant", "functions.f", "f"])
def test_an_output_ends_where_the_model_answers_for_a_tool(tmp_path, result):
    path = tmp_path / "output.txt"
    call, answer = "<|channel|>commentary to=functions.f<|message|>{}<|call|>", "<|start|>assistant" + HI
    path.write_text(f"{call}<|start|>{result}{COMMENTARY}sun<|end|>{answer}")
    told = parse_file(path)
    assert (told["reasoning"], told["content"]) == ("", "")
    assert told["tool_calls"] == [{"name": "f", "arguments": "{}"}]


def test_messages_are_set_apart(tmp_path):
    path = tmp_path / "output.txt"
    path.write_text(f"{ANALYSIS}<|start|>assistant{ANALYSIS}<|start|>assistant{COMMENTARY}Well.<|end|>{HI}")
    told = parse_file(path)
    assert (told["reasoning"], told["content"]) == ("Think.\n\nThink.", "Well.\n\nHi")


def test_what_begins_a_message_is_told():
    events, _ = parse([*pieces_of(f"{ANALYSIS}<|start|>assistant{COMMENTARY}"), "We", "ll", *pieces_of(f"<|end|>{HI}")])
    assert [event.begins for event in events[:-1]] == [True, True, False, True]


def without_header(text):
    parser = Parser(headers_needed=True)
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


def test_files_that_are_not_there(tmp_path):
    for read in (render_file, parse_file):
        with pytest.raises(GptOssError, match="No such file"):
            read(tmp_path / "nothing")


def test_render_file(tmp_path):
    path = tmp_path / "conversation.json"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "Hi"}]}))
    assert render_file(path).endswith("<|start|>user<|message|>Hi<|end|><|start|>assistant")
