"""Streams and connections: when headers go out, what keeps a stream alive, and what ends it."""

import json
import socket
import threading

import pytest

from gptoss_mlx.chat.turn import Prefill
from gptoss_mlx.errors import GptOssError
from gptoss_mlx.harmony.parse import Content
from gptoss_mlx.server import sse
from gptoss_mlx.server.errors import RequestError
from gptoss_mlx.server.sse import frame
from server.loopback import frames, refusal, stats

ASKED = {"messages": [{"role": "user", "content": "Hi"}], "stream": True}
TOO_LONG = RequestError("too long", code="context_length_exceeded", param="messages")


def stream(client, **more):
    return client.stream("POST", "/v1/chat/completions", json=ASKED | more)


def deltas(data):
    return [choice["delta"] for chunk in data if isinstance(chunk, dict) for choice in chunk.get("choices", ())]


def test_a_frame_is_one_event():
    assert frame({"a": "1\n2\r\n\u2028"}) == b'data: {"a":"1\\n2\\r\\n\xe2\x80\xa8"}\n\n'
    assert frame({}, "ping") == b"event: ping\ndata: {}\n\n"


def test_what_cannot_be_answered_has_a_status(service, client):
    service.begin(TOO_LONG)
    for streams in (True, False):
        response = client.post("/v1/chat/completions", json=ASKED | {"stream": streams})
        assert refusal(response) == (400, "messages", "too long")
        assert response.json()["error"]["code"] == "context_length_exceeded"


def test_headers_go_out_with_the_first_event(service, client, monkeypatch):
    monkeypatch.setattr(sse, "KEEP_ALIVE", 1000)
    seen = threading.Event()
    service.begin(Prefill(0, 1000), lambda: seen.wait(60), Content("Hi"), stats())
    with stream(client) as response:
        assert response.status_code == 200
        assert response.headers["cache-control"] == "no-cache"
        lines = response.iter_lines()
        assert json.loads(next(lines).removeprefix("data: "))["choices"][0]["delta"]["role"] == "assistant"
        seen.set()
        assert list(lines)[-2:] == ["data: [DONE]", ""]


@pytest.mark.parametrize("before", [(), (Prefill(0, 9),), (Content("Hi"),)])
def test_silence_is_filled_with_chunks(service, client, monkeypatch, before):
    monkeypatch.setattr(sse, "KEEP_ALIVE", 0.02)
    seen = threading.Event()
    service.begin(*before, lambda: seen.wait(60), Content("!"), stats())
    with stream(client) as response:
        lines, read = response.iter_lines(), []
        while deltas(read).count({}) < 3:
            if line := next(lines):
                read.append(json.loads(line.removeprefix("data: ")))
        seen.set()
        assert deltas(read)[0] == {"role": "assistant", "content": ""}
        assert list(lines)[-2] == "data: [DONE]"


def test_a_refusal_after_the_headers_ends_the_stream(service, client, monkeypatch):
    monkeypatch.setattr(sse, "KEEP_ALIVE", 0.02)
    seen = threading.Event()
    service.begin(lambda: seen.wait(60), TOO_LONG)
    with stream(client) as response:
        lines = response.iter_lines()
        next(lines)
        seen.set()
        *_, last, _ = lines
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (GptOssError("out of memory"), "out of memory"),
        (KeyError("secret"), "the server made an error; its log says more"),
    ],
)
def test_an_error_in_the_middle_ends_the_stream_in_words(service, client, error, message):
    service.begin(Content("Hi"), error)
    data = frames(client.post("/v1/chat/completions", json=ASKED))
    assert deltas(data)[-1] == {"content": "Hi"}
    assert data[-1] == {"error": {"message": message, "type": "server_error", "param": None, "code": None}}


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize("before", [(), (Prefill(0, 9),), (Content("Hi"),)])
def test_a_client_that_goes_away_ends_its_answer(service, client, streams, before):
    started, forever = threading.Event(), threading.Event()
    service.begin(*before, started.set, lambda: forever.wait(60), stats())
    body = json.dumps(ASKED | {"stream": streams}).encode()
    host, port = client.base_url.host, client.base_url.port
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((host, port)) as leaving:
        leaving.sendall(head.encode() + body)
        assert started.wait(60)
    try:
        assert service.closed.wait(60)
    finally:
        forever.set()
