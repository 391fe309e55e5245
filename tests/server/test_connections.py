"""Connections over real sockets: clients that are slow, send no HTTP, or too much; and the end of the server.

Where a limit of time is reached, it is short; that it is reached is what the test waits for, however long that takes.
"""

import json
import random
import socket
import threading
from contextlib import contextmanager

import httpx
import pytest

from gptoss_mlx.harmony.parse import Content
from gptoss_mlx.server.app import make_app
from gptoss_mlx.server.bodies import MAX_BYTES
from gptoss_mlx.server.connections import GracefulServer, Limits
from gptoss_mlx.server.errors import RequestError
from server.loopback import ScriptedService, stats

NEVER = 1000
PATIENT = Limits(head=NEVER, body=NEVER, stall=NEVER, idle=NEVER)
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n"
QUESTION = {"messages": [{"role": "user", "content": "Hello"}]}


@contextmanager
def serving(limits=PATIENT, service=None, end_answers=lambda: None):
    """The port of a server with these limits, and the server."""
    server = GracefulServer(make_app(service or ScriptedService()), end_answers, limits=limits)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield listening.getsockname()[1], server
        finally:
            server.should_exit = server.force_exit = True
            thread.join()


@pytest.fixture(scope="module")
def port():
    with serving() as (port, _):
        yield port


def connect(port):
    return socket.create_connection(("127.0.0.1", port), timeout=60)


def rest(connection):
    """All that comes until the server closes."""
    received = b""
    while True:
        try:
            chunk = connection.recv(2**16)
        except ConnectionResetError:
            return received
        if not chunk:
            return received
        received += chunk


def status_of(reply):
    return int(reply.split(b" ", 2)[1])


def exchange(port, data):
    with connect(port) as connection:
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
        except OSError:  # refused before all was sent
            pass
        return rest(connection)


def is_well(port):
    with connect(port) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        return status_of(rest(connection)) == 200


@pytest.mark.parametrize("begun", [b"G", HEAD, HEAD + b"x-a: b\r\n" * 3])
def test_a_head_that_does_not_end(begun):
    with serving(Limits(head=0.1, body=NEVER)) as (port, _), connect(port) as connection:
        connection.sendall(begun)
        assert status_of(rest(connection)) == 408
        assert is_well(port)


def test_a_head_that_comes_byte_by_byte():
    """Bytes that keep coming do not put off the end."""
    with serving(Limits(head=0.3, body=NEVER)) as (port, _), connect(port) as connection:
        connection.settimeout(0.02)
        while True:
            try:
                connection.sendall(b"x")
                if connection.recv(100):
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        assert is_well(port)


def test_a_connection_that_says_nothing():
    with serving(Limits(head=0.1)) as (port, _), connect(port) as connection:
        assert rest(connection) == b""


@pytest.mark.parametrize("framing", [b"content-length: 100\r\n\r\n{", b"transfer-encoding: chunked\r\n\r\n1\r\n{\r\n"])
def test_a_body_that_does_not_end(framing):
    with serving(Limits(head=NEVER, body=0.1)) as (port, _), connect(port) as connection:
        connection.sendall(HEAD + framing)
        assert status_of(rest(connection)) == 408
        assert is_well(port)


def test_a_body_for_a_reply_that_has_been_given():
    """Nobody reads the body of an unknown path, and yet it may not take for ever."""
    with serving(Limits(head=NEVER, body=0.1)) as (port, _), connect(port) as connection:
        connection.sendall(b"POST /none HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{")
        assert status_of(rest(connection)) == 404


def test_a_connection_that_is_kept_and_then_slow():
    with serving(Limits(head=0.2, body=NEVER, idle=NEVER)) as (port, _), connect(port) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\nGET /hea")
        received = rest(connection)
        assert received.count(b"HTTP/1.1") == 2
        assert b" 408 " in received


def test_a_client_that_takes_nothing():
    """Its answer ends, and with it what the model does for it."""
    service = ScriptedService()
    service.begin(*[Content("a" * 2**20) for _ in range(64)], stats())
    with serving(Limits(stall=0.2), service) as (port, _), connect(port) as connection:
        body = json.dumps(QUESTION | {"stream": True}).encode()
        connection.sendall(HEAD + b"content-length: %d\r\n\r\n" % len(body) + body)
        assert service.closed.wait(60)
        assert is_well(port)


def test_too_many_connections():
    with serving(Limits(connections=3)) as (port, _):
        kept = [connect(port) for _ in range(3)]
        for each in kept:
            each.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert b"200 OK" in each.recv(2**16)
        with connect(port) as one_more:
            assert status_of(rest(one_more)) == 503
        for each in kept:
            each.close()


MALFORMED = [
    b"\r\n\r\n",
    b"\0" * 100,
    b"GET\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET /\xff HTTP/1.1\r\nhost: localhost\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: localhost\r\nhost: localhost\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost : localhost\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: localhost\r\n folded: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: localhost\r\nx: a\0b\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    HEAD + b"content-length: -1\r\n\r\n",
    HEAD + b"content-length: 1\r\ncontent-length: 2\r\n\r\nab",
    HEAD + b"content-length: 5, 5\r\n\r\nab",
    HEAD + b"content-length: " + b"9" * 30 + b"\r\n\r\n",
    HEAD + b"transfer-encoding: chunked, identity\r\n\r\n",
    HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n",
    HEAD + b"transfer-encoding: chunked\r\n\r\n-1\r\n",
    HEAD + b"transfer-encoding: chunked\r\n\r\n" + b"f" * 40 + b"\r\n",
    HEAD + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\n",
    b"GET / HTTP/1.1\r\nhost: localhost\r\nx: " + b"a" * 100_000,
    b"GET / HTTP/1.1\r\nhost: localhost\r\n" + b"a:\r\n" * 50_000 + b"\r\n",
    b"CONNECT evil.example:443 HTTP/1.1\r\nhost: evil.example:443\r\n\r\n",
    b"GET http://evil.example/ HTTP/1.1\r\nhost: evil.example\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nhost: localhost\r\n\r\n",
    b"TRACE / HTTP/1.1\r\nhost: localhost\r\n\r\n",
]


@pytest.mark.parametrize("data", MALFORMED, ids=range(len(MALFORMED)))
def test_what_is_no_request(port, data):
    reply = exchange(port, data)
    assert not reply or 400 <= status_of(reply) < 500
    assert b"uvicorn" not in reply.lower()
    assert is_well(port)


def test_a_websocket_is_not_opened(port):
    upgrade = (
        b"upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-key: AAAA\r\nsec-websocket-version: 13\r\n\r\n"
    )
    assert status_of(exchange(port, b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n" + upgrade)) == 200


@pytest.mark.parametrize("encoding", ["gzip", "zstd", "br", "deflate, gzip"])
def test_encoded_bodies(port, encoding):
    reply = exchange(port, HEAD + f"content-encoding: {encoding}\r\ncontent-length: 2\r\n\r\n{{}}".encode())
    assert status_of(reply) == 415


def test_a_length_that_is_too_large_is_refused_before_the_body(port):
    with connect(port) as connection:
        connection.sendall(HEAD + b"content-length: %d\r\nexpect: 100-continue\r\n\r\n" % (MAX_BYTES + 1))
        assert status_of(connection.recv(2**16)) == 413


def test_a_body_without_a_length_that_is_too_large(port):
    chunk = b"100000\r\n" + b" " * 2**20 + b"\r\n"
    assert (
        status_of(exchange(port, HEAD + b"transfer-encoding: chunked\r\n\r\n" + chunk * (MAX_BYTES // 2**20 + 1)))
        == 413
    )


def test_no_banner(port):
    reply = exchange(port, b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").lower()
    assert b"server:" not in reply
    assert b"python" not in reply


def bodies(count, seed):
    """Requests that have been damaged."""
    chance = random.Random(seed)
    valid = json.dumps(
        QUESTION
        | {
            "stream": False,
            "temperature": 0.5,
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
            "stop": ["a"],
            "response_format": {"type": "json_object"},
            "input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello"}]}],
            "max_tokens": 5,
            "prompt": "a",
        }
    ).encode()
    pieces = (b"null", b"[]", b"{}", b'""', b"-1", b"1e99", b"true", b'"\\ud800"', b"\xff", b"\0", b"[" * 80, b'{"a":')
    for _ in range(count):
        body = bytearray(valid)
        for _ in range(chance.randint(1, 6)):
            at = chance.randrange(len(body))
            body[at : at + chance.choice((0, 1, 3, 10))] = chance.choice(pieces) if chance.random() < 0.7 else b""
        yield bytes(body)


PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens")


@pytest.mark.parametrize(
    ("count", "seed"),
    [(300, 1), pytest.param(100_000, 2, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])],
)
def test_damaged_bodies(port, count, seed):
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        for number, body in enumerate(bodies(count, seed)):
            response = client.post(PATHS[number % len(PATHS)], content=body)
            assert response.status_code < 500, (body, response.text)
            if response.status_code != 200:
                assert response.json()["error"]["message"]


def test_running_answers_end_as_their_protocol_ends_them():
    """They may come to an end by themselves first; then they are told to."""
    service = ScriptedService()
    begun, ending = threading.Event(), threading.Event()

    def wait():
        begun.set()
        assert ending.wait(60)

    service.begin(Content("Hello"), wait, RequestError("the server is ending", status=503, kind="server_error"))
    with serving(Limits(grace=0.2), service, ending.set) as (port, server), connect(port) as connection:
        body = json.dumps(QUESTION | {"stream": True}).encode()
        connection.sendall(HEAD + b"content-length: %d\r\n\r\n" % len(body) + body)
        assert begun.wait(60)
        server.should_exit = True
        reply = rest(connection)
    assert b"Hello" in reply
    assert b"the server is ending" in reply
    assert reply.endswith(b"0\r\n\r\n")
