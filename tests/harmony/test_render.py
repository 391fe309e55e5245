"""Rendering against the openai-harmony package: golden texts always, ids where the o200k vocabulary is at hand."""

import json
import os
from pathlib import Path
from random import Random

import pytest

from gptoss_mlx.engine.tokenizer import Tokenizer
from gptoss_mlx.harmony.files import render_file
from gptoss_mlx.harmony.messages import Conversation, ConversationError, Message, Tool, conversation_from_json
from gptoss_mlx.harmony.render import is_stale, render_ids, render_text
from harmony.cases import CASES, assistant, call, function, user
from harmony.schemas import tool

CONVERSATIONS = Path(__file__).with_name("conversations")
GOLDEN = json.loads(Path(__file__).with_name("golden.json").read_text(encoding="utf-8"))


def read(case):
    messages = [{k: v for k, v in message.items() if k != "stale"} for message in case["messages"]]
    return conversation_from_json(case | {"messages": messages})


@pytest.mark.parametrize("name", CASES)
def test_text_is_the_packages(name):
    assert render_text(read(CASES[name])) == GOLDEN[name]


@pytest.fixture(scope="module")
def o200k():
    """The folder that holds the published vocabulary, where somebody has made it."""
    folder = Path(os.environ.get("GPTOSS_O200K", ""))
    if not (folder / "o200k_base.tiktoken").is_file():
        pytest.skip("GPTOSS_O200K does not name a folder with the o200k vocabulary")
    return folder


def test_ids_are_the_packages(o200k):
    from harmony.oracle import Oracle

    oracle, tokenizer = Oracle(o200k), Tokenizer.load(o200k)
    for name, case in CASES.items():
        assert render_ids(read(case), tokenizer) == oracle.ids(case), name


def test_any_function_is_rendered_as_the_package_does(o200k):
    from harmony.oracle import Oracle

    oracle = Oracle(o200k)
    for seed in range(300):
        case = {"messages": [], "tools": [tool(Random(seed))]}
        assert render_text(read(case)) == oracle.text(case), seed


@pytest.mark.parametrize("path", sorted(CONVERSATIONS.glob("*.json")), ids=lambda path: path.stem)
def test_conversations_of_clients(path):
    assert render_file(path) == path.with_suffix(".expected.txt").read_text()


@pytest.mark.parametrize("number", [float("inf"), float("-inf"), float("nan"), 10**400, -(10**400)])
def test_numbers_that_the_package_refuses(number):
    assert "default: " in render_text(read({"messages": [], "tools": [default_of(number)]}))


def default_of(value):
    return function("f", "", {"type": "object", "properties": {"x": {"default": value}}})


def test_user_text_never_becomes_a_special_token(tokenizer):
    names = "".join(tokenizer.specials.values())
    ids = render_ids(Conversation((Message("user", names),)), tokenizer)
    plain = render_ids(Conversation((Message("user", "x"),)), tokenizer)
    special = set(tokenizer.specials)
    assert [id_ for id_ in ids if id_ in special] == [id_ for id_ in plain if id_ in special]


def test_builtin_calls_and_results_leave_with_the_analysis():
    call = Message("assistant", "1+1", channel="analysis", recipient="python")
    result = Message("python", "2", channel="analysis", recipient="assistant")
    final = Message("assistant", "2", channel="final")
    assert is_stale([call, result, final]) == [True, True, False]
    assert is_stale([call, result]) == [False, False]


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ([], "JSON object"),
        ({}, "messages"),
        ({"messages": {}}, "messages"),
        ({"messages": [3]}, r"messages\[0\]"),
        ({"messages": [{"role": "robot", "content": ""}]}, "role is 'robot'"),
        ({"messages": [{"role": "user"}]}, r"messages\[0\].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "content"),
        ({"messages": [{"role": "tool", "tool_call_id": "x", "content": ""}]}, "answers no earlier"),
        ({"messages": [{"role": "assistant", "tool_calls": [3]}]}, r"tool_calls\[0\]"),
        ({"messages": [], "tools": [3]}, r"tools\[0\]"),
        ({"messages": [], "tools": [{"function": {"name": "f", "parameters": []}}]}, "parameters"),
        ({"messages": [], "builtin_tools": ["camera"]}, "camera"),
        ({"messages": [], "reasoning_effort": "extreme"}, "extreme"),
        ({"messages": [], "colour": "red"}, "colour"),
    ],
)
def test_what_is_no_conversation_is_named(data, complaint):
    with pytest.raises(ConversationError, match=complaint):
        conversation_from_json(data)


def messages_of(*entries, **more):
    return conversation_from_json({"messages": list(entries), **more}).messages


THOUGHT = Message("assistant", "Hm.", "analysis")
F = Message("assistant", "{}", "commentary", "functions.f", "<|constrain|>json")


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (user(None), [Message("user", "")]),
        (user([]), [Message("user", "")]),
        ({"role": "system", "content": None}, [Message("developer", "")]),
        ({"role": "tool", "name": "f", "content": None}, [Message("functions.f", "", "commentary", "assistant")]),
        ({"role": "function", "name": "f", "content": "1"}, [Message("functions.f", "1", "commentary", "assistant")]),
        ({"role": "tool", "tool_name": "f", "content": "1"}, [Message("functions.f", "1", "commentary", "assistant")]),
        (assistant(None), []),
        (assistant(""), []),
        (assistant([]), []),
        (assistant("", reasoning="", tool_calls=[]), []),
        (assistant("Hi", reasoning=""), [Message("assistant", "Hi", "final")]),
        (assistant(None, reasoning="Hm."), [THOUGHT]),
        (assistant(None, reasoning_content="Hm."), [THOUGHT]),
        (assistant(None, thinking="Hm."), [THOUGHT]),
        (assistant(None, reasoning="", reasoning_content=None, thinking="Hm."), [THOUGHT]),
        (assistant(None, reasoning="Hm.", reasoning_content="Hm."), [THOUGHT]),
        (assistant(None, reasoning_details=[{"type": "reasoning.text", "text": "Hm."}]), [THOUGHT]),
        (assistant(None, refusal="No."), [Message("assistant", "No.", "final")]),
        ({"role": "assistant", "refusal": "No."}, [Message("assistant", "No.", "final")]),
        (assistant([{"type": "refusal", "refusal": "No."}]), [Message("assistant", "No.", "final")]),
        (assistant([{"type": "output_text", "text": "Hi"}]), [Message("assistant", "Hi", "final")]),
        (assistant(None, tool_calls=[call("a", "f", None)]), [F]),
        (assistant(None, tool_calls=[{"function": {"name": "f"}}]), [F]),
        (assistant(None, tool_calls=[{"type": "function", "name": "functions.f", "arguments": {}}]), [F]),
        (assistant(None, function_call={"name": "f", "arguments": "{}"}), [F]),
        (assistant("", tool_calls=[call("a", "f", "{}")]), [F]),
        (assistant("Well.", phase="commentary"), [Message("assistant", "Well.", "commentary")]),
        (assistant("Well.", phase="final_answer"), [Message("assistant", "Well.", "final")]),
        # What OpenAI's client makes of a reply.
        (
            assistant("Hi", refusal=None, annotations=[], audio=None, function_call=None, tool_calls=None, id="x"),
            [Message("assistant", "Hi", "final")],
        ),
        (user("Hi") | {"name": "Ann", "tool_calls": None}, [Message("user", "Hi")]),
    ],
)
def test_messages_as_clients_write_them(entry, expected):
    assert list(messages_of(entry)) == expected


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        (user("Hi") | {"colour": "red"}, r"messages\[0\] has the field 'colour'"),
        (assistant("Hi", reasonings="Hm."), "'reasonings'"),
        (assistant("Hi", audio={"id": "a"}), r"messages\[0\].audio would be lost"),
        (user("Hi") | {"images": ["AAAA"]}, "images would be lost"),
        (user("Hi") | {"reasoning": "Hm."}, "reasoning would be lost"),
        (user("Hi") | {"tool_calls": [call("a", "f", "{}")]}, "tool_calls would be lost"),
        (assistant("Hi", reasoning=3), r"messages\[0\].reasoning is not text"),
        (assistant("Hi", refusal=3), "refusal is not text"),
        (assistant(None, tool_calls=[{"type": "custom", "custom": {"name": "f", "input": "x"}}]), "type 'custom'"),
        (assistant(None, function_call="f"), "function_call is not a function call"),
        (assistant(None, tool_calls=[{"function": None}]), "not a function call"),
        ({"role": ["user"], "content": ""}, "role is"),
        ({"role": "tool", "tool_call_id": ["a"], "content": ""}, "answers no earlier"),
        (user([{"type": ["text"], "text": "x"}]), "content is not text"),
        ({"role": "assistant"}, "content is not text"),
    ],
)
def test_what_of_a_message_would_be_lost_is_named(entry, complaint):
    with pytest.raises(ConversationError, match=complaint):
        messages_of(entry)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (user("Hi") | {"colour": "red", "reasoning": "Hm.", "tool_calls": [3]}, [Message("user", "Hi")]),
        (assistant("Hi", reasonings="Hm."), [Message("assistant", "Hi", "final")]),
        (user("Hi") | {"images": [], "audio": None}, [Message("user", "Hi")]),
    ],
)
def test_what_clients_add_is_passed_over(entry, expected):
    assert list(conversation_from_json({"messages": [entry]}, lenient=True).messages) == expected


@pytest.mark.parametrize("entry", [user("Hi") | {"images": ["AAAA"]}, assistant(None, audio={"id": "a"})])
def test_what_a_reader_of_text_would_lose_is_never_passed_over(entry):
    with pytest.raises(ConversationError, match="would be lost"):
        conversation_from_json({"messages": [entry]}, lenient=True)


def test_results_without_ids_answer_calls_without_ids_in_order():
    calls = assistant(None, tool_calls=[{"function": {"name": "f"}}, {"function": {"name": "g"}}, call("a", "h", "{}")])
    results = [{"role": "tool", "content": "1"}, {"role": "tool", "tool_call_id": "a", "content": "2"}]
    roles = [message.role for message in messages_of(calls, *results, results[0])]
    assert roles == ["assistant", "assistant", "assistant", "functions.f", "functions.h", "functions.g"]
    with pytest.raises(ConversationError, match=r"messages\[1\].tool_call_id None answers no earlier"):
        messages_of(assistant(None, tool_calls=[call("a", "h", "{}")]), results[0])


def test_parts_that_are_no_text_are_named():
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    with pytest.raises(ConversationError, match=r"messages\[0\].content\[1\] is a part of the type 'image_url'"):
        messages_of(user([{"type": "text", "text": "What is it?"}, picture]))


READ = {"type": "function", "name": "read", "description": "Reads.", "parameters": {"type": "object"}}


def tools_of(*entries):
    return conversation_from_json({"messages": [], "tools": list(entries)}).tools


def test_a_namespace_is_its_functions():
    namespace = {"type": "namespace", "name": "mcp__fs", "description": "Files.", "tools": [READ, function("now")]}
    assert tools_of(namespace, READ) == (
        Tool("mcp__fs.read", "Files.\nReads.", {"type": "object"}),
        Tool("mcp__fs.now"),
        Tool("read", "Reads.", {"type": "object"}),
    )


@pytest.mark.parametrize("name", ["parameters", "input_schema", "inputSchema"])
def test_parameters_by_other_names(name):
    assert tools_of({"name": "f", name: {}}) == (Tool("f", "", {}),)


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ({"type": "custom", "name": "f"}, r"tools\[0\] is not a function, but of the type 'custom'"),
        ({"type": "custom", "custom": {"name": "f"}}, "type 'custom'"),
        ({"type": "web_search"}, "type 'web_search'"),
        ({"type": "mcp", "name": "f", "server_url": "x"}, "type 'mcp'"),
        ({"type": ["function"], "name": "f"}, "not a function"),
        ({"type": "namespace", "tools": [READ]}, r"tools\[0\].name is not text"),
        ({"type": "namespace", "name": "n", "tools": READ}, r"tools\[0\].tools is not a list"),
        (
            {"type": "namespace", "name": "n", "tools": [{"type": "custom", "name": "f"}]},
            r"tools\[0\].tools\[0\] is not",
        ),
        ({"type": "namespace", "name": "n", "description": 3, "tools": [READ]}, "description is not text"),
    ],
)
def test_tools_that_are_no_functions_are_named(entry, complaint):
    with pytest.raises(ConversationError, match=complaint):
        tools_of(entry)


SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}


@pytest.mark.parametrize(
    "form",
    [
        SCHEMA,
        {"name": "x", "strict": True, "schema": SCHEMA},
        {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": SCHEMA}},
        {"type": "json_schema", "name": "x", "schema": SCHEMA},
    ],
)
@pytest.mark.parametrize("field", ["response_format", "response_schema"])
def test_the_schema_of_the_answer(form, field):
    text = render_text(conversation_from_json({"messages": [user("Hi")], field: form}))
    schema = '{"type":"object","properties":{"a":{"type":"string"}}}'
    developer = f"<|start|>developer<|message|># Response Formats\n\n## answer\n\n{schema}<|end|>"
    assert f"{developer}<|start|>user<|message|>Hi<|end|>" in text


def test_other_forms_of_an_answer():
    def schema_of(form):
        return conversation_from_json({"messages": [], "response_format": form}).response_schema

    assert schema_of({"type": "text"}) is None
    assert schema_of(None) is None
    assert schema_of({"type": "json_object"}) == {"type": "object"}
    for wrong in (3, [SCHEMA], "json", {"type": "json_schema", "json_schema": 3}):
        with pytest.raises(ConversationError, match="response_format is not a JSON schema"):
            schema_of(wrong)


@pytest.mark.parametrize("name", ["python", "browser", "browser.search"])
def test_a_function_may_be_called_like_a_builtin_tool(name):
    history = assistant(None, tool_calls=[call("a", name, "{}")]), {"role": "tool", "tool_call_id": "a", "content": "1"}
    assert [(message.recipient, message.role) for message in messages_of(*history)] == [
        (f"functions.{name}", "assistant"),
        ("assistant", f"functions.{name}"),
    ]
    other = "browser" if name == "python" else "python"
    assert messages_of(*history, builtin_tools=[other]) == messages_of(*history)
    assert [
        (message.recipient, message.role) for message in messages_of(*history, builtin_tools=[name.split(".")[0]])
    ] == [
        (name, "assistant"),
        ("assistant", name),
    ]
    named = assistant(None, tool_calls=[call("a", f"functions.{name}", "{}")])
    assert messages_of(named, history[1], builtin_tools=["python", "browser"]) == messages_of(*history)


def test_content_may_be_a_list_of_text_parts():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert conversation_from_json({"messages": [{"role": "user", "content": parts}]}).messages[0].content == "ab"
