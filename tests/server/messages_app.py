"""Anthropic's API before a model that says what a test wants, and a real server on loopback."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn

from gptoss_mlx.chat.request import AnswerRequest, AnswerStats
from gptoss_mlx.engine.sampling import Sampling
from gptoss_mlx.harmony.parse import Content
from gptoss_mlx.harmony.render import render_text
from gptoss_mlx.server.app import make_app
from gptoss_mlx.server.service import Service


def stats(reason="stop", prompt=10, cached=0, sampled=5, reasoning=1, **more):
    return AnswerStats(reason, prompt, cached, sampled, reasoning, **more)


class ScriptedService(Service):
    """Answers each request with the next of the scripts: events, errors, and coroutine functions to wait for. The last
    script answers all further requests."""

    model_name, context, created = "gpt-oss-20b", 131_072, 1_790_000_000
    sampling = Sampling()

    def __init__(self, *scripts):
        self.begin(*scripts or [[Content("Hello."), stats()]])

    def begin(self, *scripts):
        self.scripts = list(scripts)
        self.requests: list[AnswerRequest] = []
        self.closed = threading.Event()

    async def answer(self, request):
        self.requests.append(request)
        render_text(request.conversation)
        script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
        try:
            for step in script:
                if isinstance(step, Exception):
                    raise step
                if isinstance(step, Callable):
                    await step()
                else:
                    yield step
        finally:
            self.closed.set()

    async def count(self, request):
        self.requests.append(request)
        return len(render_text(request.conversation))


@contextmanager
def serving(service: Service) -> Iterator[str]:
    """The address of a real server."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(make_app(service), log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
