"""Rendering against the openai-harmony package: golden texts always, ids where the o200k vocabulary is at hand."""

import json
import os
from pathlib import Path

import pytest

from gptoss_mlx.harmony.messages import Conversation, ConversationError, Message, conversation_from_json
from gptoss_mlx.harmony.render import is_stale, render_ids, render_text
from gptoss_mlx.tokenizer import Tokenizer
from harmony.cases import CASES

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


def test_content_may_be_a_list_of_text_parts():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert conversation_from_json({"messages": [{"role": "user", "content": parts}]}).messages[0].content == "ab"
