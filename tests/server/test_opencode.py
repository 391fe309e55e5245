"""opencode does a task with our chat completions: it runs what the scripted model calls."""

import json
import os
import subprocess

import pytest

from gptoss_mlx.harmony.messages import Message
from server.installing import npm_program
from server.loopback import ScriptedService, serving
from server.responding import called, said

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

PACKAGE = "opencode-ai@1.18.33"
TASK = "create made.txt with hi"
MAKE = json.dumps({"command": "printf hi > made.txt", "description": "Makes the file"})


def config(address: str) -> dict:
    """As docs/clients.md has it, but for the address."""
    return {
        "$schema": "https://opencode.ai/config.json",
        "provider": {
            "gptoss-mlx": {
                "npm": "@ai-sdk/openai-compatible",
                "name": "gptoss-mlx",
                "options": {"baseURL": f"{address}/v1"},
                "models": {"gpt-oss-20b": {"name": "gpt-oss-20b", "limit": {"context": 131072, "output": 32768}}},
            }
        },
        "model": "gptoss-mlx/gpt-oss-20b",
    }


class TaskService(ScriptedService):
    """Gives a title where there are no tools, as for the request beside the first question; else does the task."""

    async def answer(self, request):
        if not request.conversation.tools:
            self.script = said("A file")
        elif any(message.recipient == "assistant" for message in request.conversation.messages):
            self.script = said("The file is there.")
        else:
            self.script = called("bash", MAKE, preamble="I make the file.")
        async for event in super().answer(request):
            yield event


@pytest.fixture(scope="session")
def opencode(tmp_path_factory) -> str:
    return npm_program(PACKAGE, "opencode", tmp_path_factory)


def test_a_task_with_a_call(opencode, tmp_path):
    service = TaskService()
    home, project = tmp_path / "home", tmp_path / "project"
    home.mkdir()
    project.mkdir()
    with serving(service) as address:
        (project / "opencode.json").write_text(json.dumps(config(address)))
        nowhere = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9") | {"NO_PROXY": "127.0.0.1"}
        quiet = {"OPENCODE_DISABLE_MODELS_FETCH": "1", "OPENCODE_DISABLE_AUTOUPDATE": "1"}
        done = subprocess.run(
            [opencode, "run", TASK],
            cwd=project,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            env={"PATH": os.environ["PATH"], "HOME": str(home), **nowhere, **quiet},
        )
    assert done.returncode == 0, done.stderr
    assert "The file is there." in done.stdout
    assert (project / "made.txt").read_text() == "hi"
    last = max(service.requests, key=lambda request: len(request.conversation.messages)).conversation.messages
    *_, preamble, made, output = last
    assert preamble == Message("assistant", "I make the file.", "commentary")
    assert (made.recipient, json.loads(made.content)) == ("functions.bash", json.loads(MAKE))
    assert output.role == "functions.bash"
