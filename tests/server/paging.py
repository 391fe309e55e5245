"""The page's server: the real application before the demo model, whose tokens a test writes, on loopback."""

import asyncio
import json
import socket
import threading
from contextlib import contextmanager, suppress

import uvicorn

from chat.conversing import Scripted
from gptoss_mlx.chat.session import Session
from gptoss_mlx.engine.tokenizer import Tokenizer
from gptoss_mlx.harmony.messages import Tool
from gptoss_mlx.server.app import make_app
from gptoss_mlx.server.conversations import Conversations
from gptoss_mlx.tools.toolbox import Function

from .answering import serving

FINAL = "<|channel|>final<|message|>"
THOUGHT = "<|channel|>analysis<|message|>I think.<|end|><|start|>assistant"
CALL = '<|channel|>commentary to=functions.look <|constrain|>json<|message|>{"x": 1}<|call|>'


class PageServer:
    """Sessions have one tool, `look`, which waits for `seen` and asks first."""

    def __init__(self, folder, store, kv_limit=10**9):
        self.folder, self.store, self.kv_limit, self.url = folder, store, kv_limit, ""
        self.port, self.server, self.seen, self.calls = 0, None, threading.Event(), []
        self.service = None

    def script(self, *answers):
        """What the model writes next."""
        Scripted.waiting = Tokenizer.load(self.folder).encode_markup("".join(answers))

    def look(self, x):
        self.calls.append(x)
        self.seen.wait(30)
        return {"seen": x}

    def new_session(self, model):
        look = Tool("look", "Look.", {"type": "object", "properties": {"x": {"type": "integer"}}})
        return Session(model, functions=[Function(look, self.look, asks=True)], current_date="2026-01-02")

    async def _serve(self, ready, port):
        async with serving(self.folder, places=1) as service:
            self.service = service
            conversations = Conversations(service, self.store, self.new_session, kv_limit=self.kv_limit)
            app = make_app(service, conversations=conversations)
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listening:
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listening.bind(("127.0.0.1", port))
                listening.listen()  # so that a client that is faster than this thread waits
                self.port = listening.getsockname()[1]
                self.url = f"http://127.0.0.1:{self.port}"
                self.server = uvicorn.Server(
                    uvicorn.Config(app, log_level="warning", lifespan="off", timeout_graceful_shutdown=1)
                )
                ready.set()
                await self.server.serve(sockets=[listening])
            self.seen.set()
            await conversations.close()

    @contextmanager
    def running(self, port=0):
        ready = threading.Event()
        thread = threading.Thread(target=lambda: asyncio.run(self._serve(ready, port)))
        thread.start()
        assert ready.wait(60)
        try:
            yield self
        finally:
            self.server.should_exit = True
            thread.join()


def begin(page, text="Hello there", **fields):
    reply = page.post("/page/turns", json={"action": "ask", "text": text} | fields)
    assert reply.status_code == 200, reply.text
    return reply.json()["turn"]


def finish(page, turn, since=0):
    return pieces_of(page.get(f"/page/turns/{turn}", headers={"last-event-id": str(since)}).text)[0]


def of(pieces, kind):
    return [piece for piece in pieces if piece["kind"] == kind]


def html(pieces):
    return "".join(piece["html"] for piece in of(pieces, "block"))


def counted(page):
    """What the metrics say: name and labels -> value."""
    lines = page.get("/metrics").text.splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


def pieces_of(text, since=0):
    """The last form of each piece in a stream, in order, and the last id."""
    pieces, last = {}, since
    for event in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in event.split("\n") if ": " in line)
        if "data" in lines:
            last = int(lines["id"])
            pieces |= {piece["at"]: piece for piece in json.loads(lines["data"])}
    return [pieces[at] for at in sorted(pieces)], last


class Cable:
    """A way to a port that can be cut: connections end, and no others are made until it is joined."""

    def __init__(self, port):
        self._port, self._whole, self._sockets = port, True, set()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"

    def __enter__(self):
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._listening.close()
        self.cut()

    def cut(self):
        self._whole = False
        for each in list(self._sockets):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def join(self):
        self._whole = True

    def _accept(self):
        with suppress(OSError):
            while True:
                near = self._listening.accept()[0]
                if not self._whole:
                    near.close()
                    continue
                far = socket.create_connection(("127.0.0.1", self._port))
                self._sockets |= {near, far}
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=pair, daemon=True).start()

    def _carry(self, source, target):
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
