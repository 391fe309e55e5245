"""The server's real application before a model that says what a test wants, on loopback."""

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace

import httpx
import uvicorn

from gptoss_mlx.chat.request import AnswerRequest, AnswerStats
from gptoss_mlx.engine.sampling import Sampling
from gptoss_mlx.harmony.parse import Content
from gptoss_mlx.harmony.render import render_text
from gptoss_mlx.server.app import make_app
from gptoss_mlx.server.service import Service


def stats(reason="stop", prompt=10, cached=4, sampled=5, reasoning=2, **more):
    return AnswerStats(reason, prompt, cached, sampled, reasoning, **more)


def begins(kind, text):
    return kind(text, begins=True)


class ScriptedService(Service):
    """Answers every request with its script: events, errors to raise, and functions to wait for."""

    model_name, context, created = "gpt-oss-20b", 131_072, 1_790_000_000
    sampling = Sampling()
    pool = SimpleNamespace(nbytes=12_345, resting=3)

    thoughts: Mapping[str, str] = {}
    """What the model thought before each call, by its id."""

    def __init__(self):
        self.begin()

    def begin(self, *script):
        self.script = script or (Content("Hello."), stats())
        self.requests: list[AnswerRequest] = []
        self.prompts: list[str] = []
        self.completed: list[str | list[int]] = []
        self.closed = threading.Event()

    async def answer(self, request):
        self.requests.append(request)
        self.prompts.append(render_text(request.conversation))
        try:
            for step in self.script:
                if isinstance(step, Exception):
                    raise step
                if isinstance(step, Callable):
                    await asyncio.to_thread(step)
                else:
                    yield step
        finally:
            self.closed.set()

    def reasoning_before(self, call_id):
        return self.thoughts.get(call_id)

    async def count(self, request):
        """Characters of the prompt."""
        self.requests.append(request)
        self.prompts.append(render_text(request.conversation))
        return len(self.prompts[-1])

    async def complete(self, prompt, request):
        self.completed.append(prompt)
        async for event in self.answer(request):
            yield event


@contextmanager
def serving(service: Service) -> Iterator[str]:
    """The address of a real server."""
    # With its protocol named: without, asyncio does not see that Nagle's algorithm is to be turned off.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()  # so that a client that is faster than the thread waits
        server = uvicorn.Server(uvicorn.Config(make_app(service), log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def frames(response: httpx.Response) -> list:
    """The data of a complete stream, whose form is checked to the letter."""
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text.endswith("\n\n")
    lines = response.text.removesuffix("\n\n").split("\n\n")
    assert all(line.startswith("data: ") and "\n" not in line for line in lines)
    return [data if (data := line.removeprefix("data: ")) == "[DONE]" else json.loads(data) for line in lines]


def refusal(response: httpx.Response) -> tuple[int, str | None, str]:
    """The status, the param and the message of a request that is refused; the form of the error is checked."""
    (error,) = response.json().values()
    assert list(response.json()) == ["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"]
    assert "\n" not in error["message"]
    return response.status_code, error["param"], error["message"]
