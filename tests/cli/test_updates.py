"""`doctor --check-for-updates`, with a package index of this machine."""

import json
import os
import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from gptoss_mlx import GptOssError
from gptoss_mlx.cli import updates

OWN = updates.version(updates.NAME)
UNSET = dict.fromkeys(updates.VARIABLES, "")


def page(*names, **more) -> bytes:
    return json.dumps(
        {"meta": {"api-version": "1.0"}, "files": [{"filename": name, **more} for name in names]}
    ).encode()


@contextmanager
def index(body: bytes, status: int = 200, **headers: str):
    """An address, and the requests that came there."""
    requests = []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append((self.path, dict(self.headers)))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/simple", requests
    finally:
        server.shutdown()
        server.server_close()


def asked(run, *words, **changes) -> str:
    """The line that `doctor` prints of it."""
    done = run("doctor", "--check-for-updates", *words, **UNSET | changes)
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("updates"))
    return line[24:]


def test_one_request_that_says_nothing_of_this_machine(run):
    with index(page("gptoss_mlx-99.1.0.tar.gz")) as (address, requests):
        assert asked(run, address).startswith(f"99.1.0 is there, and this is {OWN}: update with `")
    ((path, headers),) = requests
    assert path == "/simple/gptoss-mlx/"
    assert headers.pop("Host").startswith("127.0.0.1:")
    assert headers == {
        "Accept": "application/vnd.pypi.simple.v1+json",
        "Accept-Encoding": "identity",
        "Connection": "close",
        "User-Agent": "gptoss-mlx",
    }


@pytest.mark.parametrize(
    "names",
    [
        [f"gptoss_mlx-{OWN}.tar.gz"],
        ["gptoss_mlx-0.0.9-cp312-cp312-macosx_14_0_arm64.whl"],
        [
            "gptoss_mlx-0.0.9.tar.gz",
            "gptoss_mlx-99.0.0rc1.tar.gz",
            "gptoss_mlx-99.0.0.dev1.tar.gz",
            "other-99.0.tar.gz",
        ],
    ],
)
def test_nothing_newer(names):
    with index(page(*names)) as (address, _):
        assert updates.update_text(address) == f"{OWN} is the newest version"


def test_ten_is_more_than_nine():
    with index(page("gptoss_mlx-9.9.0.tar.gz", "gptoss_mlx-9.10.0-cp310-cp310-any.whl")) as (address, _):
        assert updates.newest_version(address) == (9, 10, 0)


def test_what_was_withdrawn_does_not_count():
    with index(page("gptoss_mlx-99.0.0.tar.gz", yanked="broken")) as (address, _):
        assert updates.update_text(address).endswith("/simple/gptoss-mlx/ has no release")


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"files": [1]}', b'{"files": [{}]}', b"\xff", b"{" * 100_000])
def test_an_answer_of_another_kind(body):
    with index(body) as (address, _), pytest.raises(GptOssError, match="has no list of files in JSON"):
        updates.newest_version(address)


def test_no_other_address_is_asked():
    with index(page("gptoss_mlx-99.0.0.tar.gz")) as (elsewhere, requests):
        with (
            index(b"", 302, Location=f"{elsewhere}/gptoss-mlx/") as (address, _),
            pytest.raises(GptOssError, match="answers with status 302"),
        ):
            updates.newest_version(address)
        assert requests == []


def test_an_index_without_this_program():
    with index(b"", 404) as (address, _):
        assert updates.update_text(address).endswith("answers with status 404")


def test_offline_is_one_line(run):
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        line = asked(run, f"http://somebody:secret@127.0.0.1:{port}/simple/")
    assert line == f"not known: http://127.0.0.1:{port}/simple/gptoss-mlx/ cannot be asked (Connection refused)"


def test_an_index_that_never_answers(monkeypatch):
    monkeypatch.setattr(updates, "SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/simple"
        assert "did not answer within" in updates.update_text(address)


@pytest.mark.parametrize("address", ["", "file:///srv/index", "ftp://host/simple", "http://", "http://[::1/simple"])
def test_no_address_of_an_index(address):
    with pytest.raises(GptOssError, match="is no address of a package index"):
        updates.newest_version(address)


def test_the_index_is_that_of_pip_or_uv(tmp_path, monkeypatch):
    """A variable first, then uv's file, then pip's own, with which a Python without pip has nothing to do."""
    for name in updates.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    (tmp_path / "pip.conf").write_text("[global]\nindex-url = https://of-pip.example/simple\n")
    assert updates.configured_index() == "https://of-pip.example/simple"
    (tmp_path / "uv").mkdir()
    (tmp_path / "uv" / "uv.toml").write_text(
        '[[index]]\nurl = "https://more.example/"\n[[index]]\nurl = "https://of-uv.example/simple"\ndefault = true\n'
    )
    assert updates.configured_index() == "https://of-uv.example/simple"
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://of-a-variable.example/simple")
    assert updates.configured_index() == "https://of-a-variable.example/simple"


def test_no_index_at_all(tmp_path, monkeypatch):
    for name in updates.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(updates.sys, "executable", os.devnull)
    assert updates.update_text("") == (
        "not known: neither pip nor uv is here to say which package index to ask: name one with --check-for-updates URL"
    )
