"""Agents for code do a task with our server: opencode over both protocols that it speaks, and Claude Code."""

import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from gptoss_mlx.harmony.messages import Message, call
from server.loopback import serving
from server.responding import QueueingService, called, said

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TASK = "create made.txt with hi"
# Nothing but the server is to be reached.
NOWHERE = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9") | {"NO_PROXY": "127.0.0.1"}
OPENCODE = {
    "OPENCODE_DISABLE_MODELS_FETCH": "1",
    "OPENCODE_DISABLE_AUTOUPDATE": "1",
    "OPENCODE_DISABLE_DEFAULT_PLUGINS": "1",
}
CLAUDE_CODE = {
    "ANTHROPIC_API_KEY": "any",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "CLAUDE_CODE_MAX_CONTEXT_TOKENS": "131072",
    "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",
    "DISABLE_AUTOUPDATER": "1",
}


class Agent(QueueingService):
    """An answer for each request of an agent; as the real service, it knows what the model thought before its call."""

    def reasoning_before(self, call_id):
        return {"call_1": "I act."}.get(call_id)


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    """The program of a package, from the path or else from npm."""

    def installed(program: str, package: str, *binary: str) -> str:
        if found := shutil.which(program):
            return found
        if not shutil.which("npm"):
            pytest.skip(f"there is no npm, and no {program}")
        folder = tmp_path_factory.mktemp(program)
        words = ["npm", "install", "--no-audit", "--no-fund", "--prefix", folder, package]
        done = subprocess.run(words, capture_output=True, text=True, timeout=400)
        if done.returncode:
            pytest.skip(f"npm does not install {package}: {done.stderr.strip()[-200:]}")
        # The binary itself: what npm links to it is made by scripts, which npm may not run.
        return str(next((folder / "node_modules").glob("/".join(binary))))

    return installed


@pytest.fixture
def work(tmp_path):
    """Has an agent do the task; returns what it printed. The task's folder is `tmp_path / "project"`."""
    home, folder = tmp_path / "home", tmp_path / "project"
    home.mkdir()
    folder.mkdir()

    def work(words: list[str], **variables: str) -> str:
        done = subprocess.run(
            words,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=180,
            env={"PATH": os.environ["PATH"], "HOME": str(home), **NOWHERE, **variables},
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return work


def check(service: Agent, made: Path, name: str, arguments: str):
    """The task is done, and the second request is the first, what the model wrote, and the result of the call."""
    assert made.read_text().strip() == "hi"
    first, second = (request.conversation for request in service.requests)
    assert second.messages[: len(first.messages)] == first.messages
    assert second.tools == first.tools
    thought, preamble, called, result = second.messages[len(first.messages) :]
    assert thought == Message("assistant", "I act.", "analysis")
    assert preamble == Message("assistant", "I make the file.", "commentary")
    assert replace(called, content="") == call(name, "")
    assert json.loads(called.content) == json.loads(arguments)
    assert "successfully" in result.content
    assert result.role == called.recipient


@pytest.mark.parametrize("package", ["@ai-sdk/openai-compatible", "@ai-sdk/anthropic"], ids=["chat", "messages"])
def test_opencode(installed, work, tmp_path, package):
    opencode = installed("opencode", "opencode-ai@1.18.33", "opencode-linux-*", "bin", "opencode")
    made = tmp_path / "project" / "made.txt"
    arguments = json.dumps({"filePath": str(made), "content": "hi"})
    service = Agent(called("write", arguments, preamble="I make the file."), said("The file is there."))
    with serving(service) as url:
        provider = {
            "npm": package,
            "name": "gptoss-mlx",
            "options": {"baseURL": f"{url}/v1", "apiKey": "any"},
            "models": {
                "gpt-oss-20b": {
                    "name": "gpt-oss-20b",
                    "reasoning": True,
                    "tool_call": True,
                    "limit": {"context": 131072, "output": 16384},
                }
            },
        }
        config = {"provider": {"gptoss-mlx": provider}, "share": "disabled", "autoupdate": False}
        words = [opencode, "run", "--model", "gptoss-mlx/gpt-oss-20b", "--title", "a file", TASK]
        shown = work(words, OPENCODE_CONFIG_CONTENT=json.dumps(config), **OPENCODE)
    assert "The file is there." in shown
    check(service, made, "write", arguments)


def test_claude_code(installed, work, tmp_path):
    claude = installed("claude", "@anthropic-ai/claude-code@2.1.332", "@anthropic-ai", "claude-code-linux-*", "claude")
    made = tmp_path / "project" / "made.txt"
    arguments = json.dumps({"file_path": str(made), "content": "hi"})
    service = Agent(called("Write", arguments, preamble="I make the file."), said("The file is there."))
    with serving(service) as url:
        words = [claude, "-p", TASK, "--model", "gpt-oss-20b", "--allowedTools", "Write"]
        assert work(words, ANTHROPIC_BASE_URL=url, **CLAUDE_CODE) == "The file is there.\n"
    check(service, made, "Write", arguments)
    assert service.requests[0].cache_key == service.requests[1].cache_key


def test_claude_code_loads_tools_when_it_needs_them(installed, work, tmp_path):
    claude = installed("claude", "@anthropic-ai/claude-code@2.1.332", "@anthropic-ai", "claude-code-linux-*", "claude")
    search = json.dumps({"query": "select:WebFetch", "max_results": 1})
    service = Agent(called("ToolSearch", search), said("It is loaded."))
    with serving(service) as url:
        words = [claude, "-p", "load WebFetch", "--model", "gpt-oss-20b", "--allowedTools", "ToolSearch"]
        assert work(words, ANTHROPIC_BASE_URL=url, **CLAUDE_CODE) == "It is loaded.\n"
    first, second = (request.conversation for request in service.requests)
    assert second.tools == first.tools
    assert "WebFetch" not in [tool.name for tool in first.tools]
    assert second.messages[: len(first.messages)] == first.messages
    assert "type WebFetch = (_: {" in second.messages[-1].content
