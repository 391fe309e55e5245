"""`harmony render` and `harmony parse` on files, and on outputs that models gave."""

import json
from pathlib import Path

import pytest

from gptoss_mlx.errors import GptOssError
from gptoss_mlx.harmony.files import parse_file, render_file
from harmony.outputs_by_hand import ANALYSIS, COMMENTARY, HI


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


def test_files_that_are_not_there(tmp_path):
    for read in (render_file, parse_file):
        with pytest.raises(GptOssError, match="No such file"):
            read(tmp_path / "nothing")


def test_render_file(tmp_path):
    path = tmp_path / "conversation.json"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "Hi"}]}))
    assert render_file(path).endswith("<|start|>user<|message|>Hi<|end|><|start|>assistant")
