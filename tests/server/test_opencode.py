"""opencode, a coding agent, writes a file by way of chat completions: the real program, the real engine, a script.

It asks for a title of the conversation at the same time, so two conversations take turns.
"""

import asyncio
import json
import os
import shutil
import subprocess

import mlx.core as mx
import pytest

import gptoss_mlx
from gptoss_mlx.chat import answer as chat_answer
from gptoss_mlx.engine.tokenizer import Tokenizer
from gptoss_mlx.server.service import open_service
from server.loopback import serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PACKAGE = "opencode-ai@1.18.33"
ANALYSIS = "<|channel|>analysis<|message|>{}<|end|><|start|>assistant"
FINAL = "<|channel|>final<|message|>{}<|return|>"
PREAMBLE = "<|channel|>commentary<|message|>I write it.<|end|><|start|>assistant"
CALL = "<|channel|>commentary to=functions.write <|constrain|>json<|message|>{}<|call|>"


@pytest.fixture(scope="module")
def opencode(tmp_path_factory) -> str:
    """The program, from npm; its binary comes as a package of its own."""
    if not shutil.which("npm"):
        pytest.skip("there is no npm")
    folder = tmp_path_factory.mktemp("opencode")
    words = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), PACKAGE]
    installed = subprocess.run(words, capture_output=True, text=True)
    programs = sorted(folder.glob("node_modules/opencode-*/bin/opencode"), key=lambda path: len(str(path)))
    if not programs:
        pytest.skip(f"npm does not install {PACKAGE}: {installed.stderr.strip()[-200:]}")
    return str(next(path for path in programs if "opencode-ai" not in str(path)))


def test_opencode_writes_a_file(opencode, demo_folder, tmp_path, monkeypatch):
    tokenizer = Tokenizer.load(demo_folder)
    work, home = tmp_path / "work", tmp_path / "home"
    work.mkdir()
    home.mkdir()
    call = CALL.format(json.dumps({"filePath": str(work / "hello.txt"), "content": "Hello.\n"}))
    prompts = []

    class Agent:
        """Samples what an agent would write after the prompt that it is made for."""

        def __init__(self, sampling, context=(), logprobs=None):
            prompts.append(prompt := tokenizer.decode(list(context)))
            if "namespace functions" not in prompt:
                script = FINAL.format("A title")
            elif "<|start|>functions.write to=assistant" not in prompt:
                script = ANALYSIS.format("I think of it.") + PREAMBLE + call
            else:
                script = ANALYSIS.format("It is there.") + FINAL.format("Done, it is written.")
            self.ids = tokenizer.encode_markup(script)

        def __call__(self, logits, allowed=None):
            return mx.array([self.ids.pop(0) if self.ids else 0])

    monkeypatch.setattr(chat_answer, "Sampler", Agent)
    service = asyncio.run(open_service(lambda: gptoss_mlx.load(demo_folder), "demo", places=2))
    with serving(service) as url:
        (work / "opencode.json").write_text(json.dumps(config(f"{url}/v1")))
        ran = subprocess.run(
            [opencode, "run", "Write hello.txt"],
            cwd=work,
            env={"PATH": os.environ["PATH"], "HOME": str(home)},
            capture_output=True,
            text=True,
            timeout=300,
        )
    service.close("the test is over")
    assert ran.returncode == 0, ran.stderr
    assert (work / "hello.txt").read_text() == "Hello.\n"
    assert "Done, it is written." in ran.stdout
    assert len(prompts) == 3
    # The reasoning and the preamble before the call are back.
    assert ANALYSIS.format("I think of it.") + PREAMBLE in prompts[-1]


def config(url):
    model = {"name": "gpt-oss", "reasoning": True, "tool_call": True, "limit": {"context": 131_072, "output": 8192}}
    provider = {"npm": "@ai-sdk/openai-compatible", "options": {"baseURL": url, "apiKey": "none"}}
    return {
        "provider": {"gptoss": provider | {"models": {"gpt-oss-20b": model}}},
        "model": "gptoss/gpt-oss-20b",
        "small_model": "gptoss/gpt-oss-20b",
        "permission": {"*": "allow"},
        "share": "disabled",
        "autoupdate": False,
    }
