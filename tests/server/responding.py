"""A service with an answer for each request, and requests as an agent for code makes them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable

import httpx

from gptoss_mlx.chat.request import AnswerEvent, AnswerRequest, AnswerStats, Called
from gptoss_mlx.engine.sampling import Sampling
from gptoss_mlx.harmony.parse import Content, Preamble, Reasoning
from gptoss_mlx.server.app import make_app
from gptoss_mlx.server.service import Service

Step = AnswerEvent | Exception | Callable
"""An event, an error to raise, or a coroutine function to wait for."""


class QueueingService(Service):
    """Gives the answers that wait, one after another, and keeps what it was asked."""

    model_name, context, created = "gpt-oss-test", 131_072, 1_790_000_000
    sampling = Sampling()

    def __init__(self, *answers: list[Step]):
        self.answers = list(answers)
        self.requests: list[AnswerRequest] = []
        self.closed = 0

    async def answer(self, request: AnswerRequest) -> AsyncGenerator[AnswerEvent, None]:
        self.requests.append(request)
        steps = self.answers.pop(0) if self.answers else said("Yes.")
        try:
            for step in steps:
                if isinstance(step, Exception):
                    raise step
                if callable(step):
                    await step()
                else:
                    yield step
        finally:
            self.closed += 1

    @property
    def messages(self):
        return self.requests[-1].conversation.messages


def stats(reason="stop", prompt=100, cached=60, sampled=20, reasoning=5) -> AnswerStats:
    return AnswerStats(reason, prompt, cached, sampled, reasoning)


def said(text: str) -> list[Step]:
    """An answer after a thought, in pieces."""
    middle = len(text) // 2
    return [
        Reasoning("I ", begins=True),
        Reasoning("think."),
        Content(text[:middle], begins=True),
        Content(text[middle:]),
        stats(),
    ]


def called(name: str, arguments: str, id_: str = "call_1", preamble: str = "") -> list[Step]:
    told = [Preamble(preamble, begins=True)] if preamble else []
    return [Reasoning("I act.", begins=True), *told, Called(id_, name, arguments), stats("tool_calls")]


def send(service: Service, method: str, path: str, body=None, *, app=None, **options) -> httpx.Response:
    """The reply to one request, without a network. What a handler raises is raised here, unless it is a reply."""

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app or make_app(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.request(method, path, json=body, **options)

    return asyncio.run(ask())


def frames(text: str) -> list[dict]:
    """The data of server-sent events, whose names are their types."""
    found = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def function(name: str, **properties: str) -> dict:
    """A tool as Responses has it; each property with its type."""
    parameters = {
        "type": "object",
        "properties": {
            each: {"type": type_, "description": f"The {each}. " * 12} for each, type_ in properties.items()
        },
        "required": list(properties),
        "additionalProperties": False,
    }
    about = f"Does what {name} says. " * 50
    return {"type": "function", "name": name, "description": about, "strict": False, "parameters": parameters}


COMMAND = function("exec_command", cmd="string", workdir="string", yield_time_ms="number")
SPAWN = function("spawn_agent", message="string")
AGENT_TOOLS = [
    COMMAND,
    *(function(name, session_id="number", chars="string") for name in ("write_stdin", "ask_user", "plan", "look")),
    {
        "type": "namespace",
        "name": "multi_agent_v1",
        "description": "Helpers that work beside you.",
        "tools": [SPAWN, function("wait_agent", id="string"), function("close_agent", id="string")],
    },
    {"type": "web_search", "external_web_access": False},
]


def text_message(role: str, *texts: str, **more) -> dict:
    kind = "output_text" if role == "assistant" else "input_text"
    return {"type": "message", "role": role, "content": [{"type": kind, "text": text} for text in texts], **more}


def agent_body(*later: dict, **changes) -> dict:
    """About 40 kB: what Codex sends, in other words."""
    rules = "\n".join(
        f"{i}. Read a file before you change it, and say in a sentence what you change." for i in range(220)
    )
    return {
        "model": "gpt-oss-20b",
        "stream": True,
        "input": [
            text_message("developer", f"You are an agent for code.\n{rules}"),
            text_message("developer", "Ask nobody: no question is answered.", "Nothing is out of bounds."),
            text_message("user", "<environment_context>\n  <cwd>/home/ann/project</cwd>\n</environment_context>"),
            text_message("user", "create made.txt with hi"),
            *later,
        ],
        "tools": AGENT_TOOLS,
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "reasoning": {"summary": "auto"},
        "store": False,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "0199-ab",
        "client_metadata": {"installation": "0199-cd"},
        **changes,
    }
