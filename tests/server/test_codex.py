"""The Codex CLI does its tasks with our server: real sessions, in which it runs what the scripted model calls."""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from gptoss_mlx.chat.turn import Prefill
from gptoss_mlx.errors import GptOssError
from gptoss_mlx.harmony.messages import Message, call
from gptoss_mlx.harmony.parse import Content
from gptoss_mlx.server import sse
from gptoss_mlx.server.errors import RequestError
from server.loopback import begins, serving, stats
from server.responding import QueueingService, called, said

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PACKAGE = "@openai/codex@0.171.0"
# As docs/clients.md has it, but for the address and the file of instructions.
CONFIG = """
model = "gpt-oss-20b"
model_provider = "gptoss-mlx"
model_context_window = 131072
web_search = "disabled"

[model_providers.gptoss-mlx]
name = "gptoss-mlx"
base_url = "{address}/v1"
wire_api = "responses"
stream_idle_timeout_ms = {patience}

[agents]
enabled = {agents}

[features]
goals = false
"""
TASK = "create made.txt with hi"
PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
MAKE = json.dumps({"cmd": "printf hi > made.txt"})


@pytest.fixture(scope="session")
def codex(tmp_path_factory) -> str:
    """The program, from the path or else from npm; its binary comes with the package."""
    if found := shutil.which("codex"):
        return found
    if not shutil.which("npm"):
        pytest.skip("there is no npm, and no codex")
    folder = tmp_path_factory.mktemp("codex")
    words = ["npm", "install", "--no-audit", "--no-fund", "--prefix", folder, PACKAGE]
    installed = subprocess.run(words, capture_output=True, text=True, timeout=240)
    if installed.returncode:
        pytest.skip(f"npm does not install {PACKAGE}: {installed.stderr.strip()[-200:]}")
    return str(folder / "node_modules" / ".bin" / "codex")


@pytest.fixture
def work(tmp_path, codex):
    """Has Codex do the task with a service; returns what it printed and where it worked."""
    home, folder = tmp_path / "home", tmp_path / "project"
    home.mkdir()
    folder.mkdir()

    def work(
        service: QueueingService, *options: str, agents: bool = False, patience: int = 300_000
    ) -> tuple[subprocess.CompletedProcess, Path]:
        with serving(service) as address:
            config = CONFIG.format(address=address, agents=json.dumps(agents), patience=patience)
            (home / "config.toml").write_text(config)
            words = [codex, "exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"]
            nowhere = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9") | {"NO_PROXY": "127.0.0.1"}
            done = subprocess.run(
                [*words, *options, TASK],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=120,
                env={"PATH": os.environ["PATH"], "HOME": str(home), "CODEX_HOME": str(home), **nowhere},
            )
        return done, folder

    return work


def test_a_task_with_a_call(work):
    service = QueueingService(called("exec_command", MAKE, preamble="I make the file."), said("The file is there."))
    done, folder = work(service)
    assert done.returncode == 0
    assert done.stdout == "The file is there.\n"
    assert (folder / "made.txt").read_text() == "hi"
    first, second = service.requests
    assert [tool.name for tool in first.conversation.tools][:2] == ["exec_command", "write_stdin"]
    assert first.reasons
    assert first.cache_key == second.cache_key
    assert second.conversation.messages[: len(first.conversation.messages)] == first.conversation.messages
    *told, result = second.conversation.messages[len(first.conversation.messages) :]
    assert told == [
        Message("assistant", "I act.", "analysis"),
        Message("assistant", "I make the file.", "commentary"),
        call("exec_command", MAKE),
    ]
    assert result.role == "functions.exec_command"
    assert "exited with code 0" in result.content


def test_a_session_that_is_resumed(work):
    """Its requests begin with all that was said before, to the letter."""
    service = QueueingService(called("exec_command", MAKE), said("The file is there."), said("It was there."))
    work(service)
    done, _ = work(service, "resume", "--last")
    assert done.stdout == "It was there.\n"
    before, after = (request.conversation.messages for request in service.requests[1:])
    assert after[: len(before)] == before
    assert after[len(before) :][:2] == (
        Message("assistant", "I think.", "analysis"),
        Message("assistant", "The file is there.", "final"),
    )


def test_a_tool_of_a_namespace(work):
    spawn = called("multi_agent_v1.spawn_agent", '{"message": "say hello"}')
    service = QueueingService(spawn, *[said("Hello.")] * 8)
    done, _ = work(service, agents=True)
    assert done.returncode == 0
    assert "multi_agent_v1.spawn_agent" in [tool.name for tool in service.requests[0].conversation.tools]
    results = [m for asked in service.requests for m in asked.conversation.messages if m.recipient == "assistant"]
    assert {message.role for message in results} == {"functions.multi_agent_v1.spawn_agent"}
    assert "agent_id" in results[0].content


def test_arguments_that_are_no_json(work):
    cut_off = '{"cmd": "printf'
    service = QueueingService(
        called("exec_command", cut_off), called("exec_command", MAKE, "call_2"), said("Now it is there.")
    )
    done, folder = work(service)
    assert done.returncode == 0
    assert (folder / "made.txt").read_text() == "hi"
    failed = service.requests[-1].conversation.messages.index(call("exec_command", cut_off))
    assert "failed to parse" in service.requests[-1].conversation.messages[failed + 1].content


def test_a_picture_that_it_looks_at(work):
    """The session goes on, as the model is told that it does not see it."""
    draw = json.dumps({"cmd": f"echo {PICTURE} | base64 -d > a.png"})
    look = json.dumps({"path": "a.png"})
    service = QueueingService(
        called("exec_command", draw), called("view_image", look, "call_2"), said("I cannot see it.")
    )
    done, _ = work(service)
    assert done.stdout == "I cannot see it.\n"
    assert "left out" in service.requests[-1].conversation.messages[-1].content


def test_an_answer_in_json(work, tmp_path):
    schema = {"type": "object", "properties": {"made": {"type": "boolean"}}, "required": ["made"]}
    schema["additionalProperties"] = False
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    service = QueueingService(said('{"made": true}'))
    done, _ = work(service, "--output-schema", str(tmp_path / "schema.json"))
    assert json.loads(done.stdout) == {"made": True}
    assert service.requests[0].conversation.response_schema == schema


def test_a_long_prefill(work, monkeypatch):
    """Longer than Codex waits without an event."""
    monkeypatch.setattr(sse, "KEEP_ALIVE", 0.5)
    service = QueueingService([Prefill(0, 9000), lambda: time.sleep(8), *said("Yes.")], said("You have asked before."))
    done, _ = work(service, patience=3000)
    assert done.stdout == "Yes.\n"
    assert len(service.requests) == 1


GONE = GptOssError("the model is gone")
TOO_LONG = RequestError("the prompt has 9 tokens too many", code="context_length_exceeded")
ENDS = {
    "at the maximum": ([begins(Content, "The f"), stats("length")], 1, "max_output_tokens"),
    "too long": ([TOO_LONG], 1, "ran out of room in the model's context window"),
    "too long, after it waited": ([lambda: time.sleep(1), TOO_LONG], 1, "ran out of room in the model's context"),
    "failed": ([begins(Content, "The f"), GONE], 6, "the model is gone"),
    "failed after a call": ([*called("exec_command", json.dumps({"cmd": "echo hi >> made.txt"}))[:-1], GONE], 1, ""),
}


@pytest.mark.parametrize(("script", "requests", "told"), ENDS.values(), ids=ENDS)
def test_answers_that_end_badly(work, monkeypatch, script, requests, told):
    """Codex says why, and no command is run twice."""
    monkeypatch.setattr(sse, "KEEP_ALIVE", 0.3)
    service = QueueingService(*[script] * 40)
    done, folder = work(service)
    assert done.returncode == 1
    assert len(service.requests) == requests
    assert told in done.stderr
    made = folder / "made.txt"
    assert not made.exists() or made.read_text() == "hi\n"
