"""`harmony`: conversations in files."""

import json

from cli.test_cli import assert_one_line_error


def test_harmony_render(run, tmp_path):
    path = tmp_path / "conversation.json"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "Hi"}]}))
    one = run("harmony", "render", path).stdout
    assert one.endswith("<|start|>user<|message|>Hi<|end|><|start|>assistant")
    lines = run("harmony", "render", path, path).stdout.splitlines()
    assert [json.loads(line) for line in lines] == [{"file": str(path), "output": one}] * 2


def test_harmony_parse(run, tmp_path):
    path = tmp_path / "output.txt"
    path.write_text("<|channel|>final<|message|>Hi<|return|>")
    one = json.loads(run("harmony", "parse", path).stdout)
    assert (one["content"], one["stop"]) == ("Hi", "return")
    lines = run("harmony", "parse", path, path).stdout.splitlines()
    assert [json.loads(line) for line in lines] == [{"file": str(path), "output": one}] * 2


def test_harmony_errors(run, tmp_path):
    (tmp_path / "bad.json").write_text('{"messages": [{"role": "robot", "content": ""}]}')
    assert_one_line_error(run("harmony", "render", tmp_path / "bad.json"), "bad.json", "robot")
    assert_one_line_error(run("harmony", "parse", tmp_path / "nothing"), "No such file")
    assert_one_line_error(run("harmony", "render"), "FILE", status=2)
