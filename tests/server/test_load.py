"""Many clients at a real server for a long time: nothing is lost or mixed, and nothing is left behind."""

import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import msgspec
import pytest

from chat.conversing import QUESTIONS

CLIENTS = 8
WAIT = 600  # seconds, in which a reply has come on the slowest machine


@contextmanager
def server(folder, environment, *options):
    """The real server; yields its process and address."""
    words = [sys.executable, "-m", "gptoss_mlx", "serve", str(folder), "--port", "0", *options]
    process = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        yield process, re.search(r"http://\S+", process.stdout.readline()).group()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def body(messages, **options):
    return {"model": "m", "messages": messages, "temperature": 0, "max_tokens": 60, "stream": True} | options


def conversation(client):
    """The questions that this client asks, one after another."""
    return [QUESTIONS[(client + step) % len(QUESTIONS)] for step in range(3)]


def streamed(http, messages):
    """The content of a streamed answer."""
    text = ""
    with http.stream("POST", "/v1/chat/completions", json=body(messages)) as response:
        assert response.status_code == 200
        for line in response.iter_lines():
            if line.startswith("data: {"):
                chunk = msgspec.json.decode(line[6:])
                text += "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
        assert line == "" or line == "data: [DONE]"
    return text


def converse(http, client):
    messages, answers = [], []
    for question in conversation(client):
        messages.append({"role": "user", "content": question})
        answers.append(streamed(http, messages))
        messages.append({"role": "assistant", "content": answers[-1]})
    return answers


def leave(address, client, rng, *, abruptly):
    """Ask, and go away before the answer is there: with a reset of the connection, as one that was killed."""
    data = msgspec.json.encode(body([{"role": "user", "content": QUESTIONS[client]}]))
    with socket.create_connection((address.host, address.port)) as connection:
        if abruptly:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address.host}:{address.port}\r\n"
        connection.sendall(
            f"{head}Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data
        )
        connection.recv(rng.choice([1, 300, 3000]))


def send_nonsense(http, rng):
    """A body in which some bytes are others."""
    data = bytearray(msgspec.json.encode(body([{"role": "user", "content": "Hello"}], stream=False, max_tokens=2)))
    for _ in range(rng.randrange(1, 6)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    answer = http.post("/v1/chat/completions", content=bytes(data), headers={"content-type": "application/json"})
    assert answer.status_code in (200, 400), answer.text


def resources(process):
    """Threads, open files, and bytes of memory that are the process's own."""
    folder = Path("/proc", str(process.pid))
    status = (folder / "status").read_text()
    anonymous = int(re.search(r"RssAnon:\s+(\d+)", status).group(1)) * 1024
    return len(os.listdir(folder / "task")), len(os.listdir(folder / "fd")), anonymous


def rest(http):
    """Wait until nobody's answer is being written."""
    while not re.search(r"^\S*running\S* 0(\.0)?$", http.get("/metrics").text, re.MULTILINE):
        time.sleep(0.1)
    time.sleep(0.5)


def work(url, expected, client, goes_on, failures):
    rng, address, rounds = random.Random(client), httpx.URL(url), 0
    try:
        with httpx.Client(base_url=url, timeout=WAIT) as http:
            while goes_on(rounds):
                rounds += 1
                match rng.randrange(5):
                    case 0 | 1:
                        assert converse(http, client) == expected[client]
                    case 2:
                        leave(address, client, rng, abruptly=False)
                    case 3:
                        leave(address, client, rng, abruptly=True)
                    case 4:
                        send_nonsense(http, rng)
    except BaseException as error:
        failures.append((client, repr(error)))


def load(url, expected, goes_on):
    failures = []
    threads = [
        threading.Thread(target=work, args=(url, expected, client, goes_on, failures)) for client in range(CLIENTS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("seconds", [0, pytest.param(600, marks=[pytest.mark.slow, pytest.mark.timeout(1500)])])
def test_clients_get_what_they_get_alone_and_nothing_is_left(demo_folder, environment, seconds):
    """Three rounds of each client, or enough of them to fill the memory of what rests, and then so many seconds."""
    context = ("--context", "8192") if seconds else ()
    with (
        server(demo_folder, environment, "--parallel", "4", *context) as (process, url),
        httpx.Client(base_url=url, timeout=WAIT) as http,
    ):
        expected = [converse(http, client) for client in range(CLIENTS)]
        load(url, expected, lambda rounds: rounds < (60 if seconds else 3))
        rest(http)
        threads, files, memory = resources(process)
        if seconds:
            end = time.monotonic() + seconds
            load(url, expected, lambda rounds: time.monotonic() < end)
            rest(http)
        after = resources(process)
        assert after[0] <= threads
        assert after[1] <= files
        assert after[2] <= memory * 1.05
