"""A stand-in for the hub: serves a repository from a folder over HTTP, and takes uploads, as huggingface_hub needs it.

Like the hub, it keeps weights apart from the rest (large file storage): they have a SHA-256, and are served from
another host, which must not see the user's token.
"""

import base64
import hashlib
import json
import re
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
from huggingface_hub import constants

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_stand_in"


@dataclass
class Request:
    """One that was answered: its file's name or its path, its Range header; the bytes of the answer's body."""

    method: str
    what: str
    range: str | None
    agent: str
    authorization: str | None
    status: int
    at: float
    """By time.monotonic."""
    sent: int = 0


class Hub(ThreadingHTTPServer):
    """Knows one repository, and those that are uploaded. What tests may set:

    cuts        file -> after how many bytes its next transfers break
    damaged     file whose bytes are not those of its SHA-256
    slow        seconds to wait before each 64 KiB
    rate        bytes a second of each transfer, if there is a limit
    line        bytes a second of all transfers together, if there is a limit
    gate        transfers begin when so many are waiting; those after them do not wait
    hangs       how many of the next transfers send nothing, and do not end
    limit       how many transfers there may be at once; more are refused
    busy        (status, Retry-After) of the next answers to file requests
    ranges      whether they are honoured; the whole file is sent where not
    aligned     ranges begin at multiples of this
    more        how many bytes ranges are longer than they should be
    longest     bytes of a range that are sent at most
    replaced    file -> content that takes its place after its next transfer has begun
    gated       refuses everything about the repository until consent is given
    status      answers file requests with this error
    room        how many more large files may be uploaded
    """

    daemon_threads = True

    def __init__(self, folder: Path, repository: str):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.repository = folder, repository
        self.log: list[Request] = []
        self.cuts: dict[str, list[int]] = {}
        self.damaged: str | None = None
        self.slow, self.gated, self.status, self.room = 0.0, False, None, 1000
        self.rate = self.line = 0.0
        self.hangs = 0
        self.gate, self.limit, self.ranges, self.aligned, self.more, self.longest = 0, 1000, True, 1, 0, 2**62
        self.busy: list[tuple[int, str]] = []
        self.replaced: dict[str, bytes] = {}
        self.most = 0
        """The most transfers that there were at once."""
        self._begun = self._active = 0
        self._free = 0.0
        """When the line has sent all that it was given."""
        self._changed = threading.Condition()
        self._read: dict[Path, tuple[tuple[int, int], bytes]] = {}
        self.stored: dict[str, bytes] = {}
        """Large file storage: SHA-256 -> content."""
        self.uploaded: dict[str, dict[str, bytes]] = {}
        """Repository -> file -> content, as committed."""

    def handle_error(self, request, client_address) -> None:
        """Clients leave in the middle of a transfer: no news."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def storage(self) -> str:
        return f"http://localhost:{self.server_port}/storage"

    def of(self, what: str) -> list[Request]:
        """The requests that gave bytes of one file."""
        return [request for request in self.log if request.what == what and request.method == "GET"]

    def contents(self, repository: str) -> dict[str, bytes] | None:
        if repository == self.repository:
            files = sorted(path for path in self.folder.rglob("*") if path.is_file())
            return {str(path.relative_to(self.folder)): self._content(path) for path in files}
        return self.uploaded.get(repository)

    def _content(self, path: Path) -> bytes:
        """Read once, unless it changes."""
        key = (path.stat().st_mtime_ns, path.stat().st_size)
        if self._read.get(path, (None,))[0] != key:
            self._read[path] = key, path.read_bytes()
        return self._read[path][1]

    def begin(self) -> bool:
        """A transfer, unless there are too many."""
        with self._changed:
            if self._active >= self.limit:
                return False
            self._begun, self._active = self._begun + 1, self._active + 1
            self.most = max(self.most, self._active)
            self._changed.notify_all()
            if self.hangs > 0:
                self.hangs -= 1
                return self._changed.wait_for(lambda: self.hangs < 0, 20)
            return self._changed.wait_for(lambda: self._begun >= self.gate, 20)

    def end(self) -> None:
        with self._changed:
            self._active -= 1
            self._changed.notify_all()

    def let_go(self) -> None:
        """All that wait or hang."""
        with self._changed:
            self.gate, self.hangs = 0, -1
            self._changed.notify_all()

    def settle(self) -> None:
        """Wait for the ends of all transfers, whose clients may be gone."""
        with self._changed:
            assert self._changed.wait_for(lambda: not self._active, 20)

    def wait(self, began: float, sent: int, count: int) -> None:
        """Before the next `count` bytes of a transfer that has sent some."""
        now = time.monotonic()
        with self._changed:
            if self.line:
                self._free = max(self._free, now) + count / self.line
            due = max(self._free, began + (sent + count) / self.rate if self.rate else 0, now + self.slow)
        time.sleep(max(due - now, 0))


@lru_cache(maxsize=16)
def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@lru_cache(maxsize=16)
def sha1(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


def in_storage(name: str) -> bool:
    return name.endswith(".safetensors")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self.get_model(match[1], match[2] or "main")
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.get_file(*match.groups())
        elif match := re.fullmatch(r"/storage/([^/]+/[^/]+)/(.+)", path):
            assert "Authorization" not in self.headers
            self.send_file(match[2], self.server.contents(match[1])[match[2]])
        else:
            self.send_json({"error": f"no {path}"}, 404)

    def refused(self, repository: str, revision: str) -> bool:
        if self.server.gated and repository == self.server.repository:
            self.send_json({"error": "gated"}, 403, {"X-Error-Code": "GatedRepo"})
        elif self.server.contents(repository) is None:
            self.send_json({"error": "not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        elif revision not in ("main", COMMIT):
            self.send_json({"error": "not found"}, 404, {"X-Error-Code": "RevisionNotFound"})
        else:
            return False
        return True

    def get_model(self, repository: str, revision: str) -> None:
        if self.refused(repository, revision):
            return
        siblings = []
        for name, data in self.server.contents(repository).items():
            entry = {"rfilename": name, "size": len(data), "blobId": sha1(data)}
            if in_storage(name):
                entry["lfs"] = {"sha256": sha256(data), "size": len(data), "pointerSize": 130}
            siblings.append(entry)
        self.send_json({"id": repository, "sha": COMMIT, "siblings": siblings})

    def get_file(self, repository: str, revision: str, name: str) -> None:
        if self.refused(repository, revision):
            return
        data = self.server.contents(repository).get(name)
        if data is None:
            self.send_json({"error": "not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        elif in_storage(name):
            headers = {"X-Linked-ETag": f'"{sha256(data)}"', "X-Linked-Size": str(len(data)), "X-Repo-Commit": COMMIT}
            self.send(302, b"", headers | {"Location": f"{self.server.storage}/{repository}/{name}"})
        else:
            self.send_file(name, data)

    def send_file(self, name: str, data: bytes) -> None:
        if self.server.status:
            self.send_json({"error": "out of order"}, self.server.status)
        elif self.server.busy and self.command == "GET":
            status, after = self.server.busy.pop(0)
            self.send_json({"error": "busy"}, status, {"Retry-After": after})
        elif self.command == "HEAD":
            self.send_range(name, data)
        elif self.server.begin():
            try:
                self.send_range(name, data)
            finally:
                self.server.end()
        else:
            self.send_json({"error": "too many"}, 503)

    def send_range(self, name: str, data: bytes) -> None:
        hub, status = self.server, 200
        if self.command == "GET" and (other := hub.replaced.pop(name, None)) is not None:
            beside = hub.folder.parent / f"new-{name}"
            beside.write_bytes(other)
            beside.replace(hub.folder / name)
        headers = {"ETag": f'"{sha1(data)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if name == hub.damaged:
            data = data[:-1] + bytes([data[-1] ^ 1])
        if hub.ranges and (match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))):
            start, end = int(match[1]), int(match[2] or len(data) - 1) + 1
            if start >= len(data):
                self.send(416, b"", {"Content-Range": f"bytes */{len(data)}"}, name)
                return
            start -= start % hub.aligned
            end = min(end + hub.more, start + hub.longest, len(data))
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
            status, data = 206, data[start:end]
        cuts = hub.cuts.get(name) if self.command == "GET" else None
        self.send(status, data, headers, name, cut=cuts.pop(0) if cuts else None)

    def do_POST(self) -> None:
        path, body = urlsplit(self.path).path, self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.send_json({"error": "no token"}, 401)
        elif path == "/api/repos/create":
            self.create(json.loads(body))
        elif path == "/api/validate-yaml":
            self.send_json({"errors": [], "warnings": []})
        elif re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = {name: "lfs" if in_storage(name) else "regular" for name in names}
            files = [{"path": name, "uploadMode": mode, "shouldIgnore": False} for name, mode in modes.items()]
            self.send_json({"files": files})
        elif path.endswith(".git/info/lfs/objects/batch"):
            self.send_json({"objects": [self.object(each) for each in json.loads(body)["objects"]]})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            self.commit(match[1], [json.loads(line) for line in body.splitlines()])
        else:
            self.send_json({"error": f"no {path}"}, 404)

    def create(self, wanted: dict) -> None:
        repository = f"{wanted['organization']}/{wanted['name']}"
        known = self.server.contents(repository) is not None
        self.server.uploaded.setdefault(repository, {})
        self.send_json({"url": f"{self.server.address}/{repository}"}, 409 if known else 200)

    def object(self, wanted: dict) -> dict:
        """Where to put a large file; nothing where it is here already."""
        if wanted["oid"] in self.server.stored:
            return wanted
        return wanted | {"actions": {"upload": {"href": f"{self.server.address}/storage/{wanted['oid']}"}}}

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        digest = urlsplit(self.path).path.rpartition("/")[2]
        assert hashlib.sha256(data).hexdigest() == digest
        if self.server.room == 0:
            self.send_json({"error": "no room"}, 400)
            return
        self.server.room -= 1
        self.server.stored[digest] = data
        self.send(200, b"", {})

    def commit(self, repository: str, lines: list[dict]) -> None:
        files = self.server.uploaded[repository]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.stored[value["oid"]]
        self.send_json({"commitUrl": f"{self.server.address}/{repository}/commit/{COMMIT}", "commitOid": COMMIT})

    def send_json(self, data: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send(status, json.dumps(data).encode(), {"Content-Type": "application/json"} | (headers or {}))

    def send(
        self, status: int, data: bytes, headers: dict[str, str], name: str | None = None, *, cut: int | None = None
    ) -> None:
        self.send_response(status)
        for header, value in (headers | {"Content-Length": str(len(data))}).items():
            self.send_header(header, value)
        self.end_headers()
        what, agent = name or urlsplit(self.path).path, self.headers.get("User-Agent", "")
        asked, token, began = self.headers.get("Range"), self.headers.get("Authorization"), time.monotonic()
        request = Request(self.command, what, asked, agent, token, status, began)
        self.server.log.append(request)
        if self.command == "HEAD":
            return
        self.close_connection |= cut is not None
        data = data[:cut]
        for start in range(0, len(data), 2**16):
            piece = data[start : start + 2**16]
            if name:
                self.server.wait(began, request.sent, len(piece))
            request.sent += len(piece)  # first, because a test may look as soon as it has them
            try:
                self.wfile.write(piece)
            except ConnectionError:
                self.close_connection = True
                return


def use(hub: Hub | SimpleNamespace, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """Make huggingface_hub in this process go to the stand-in, with a cache and a token of its own.

    Without the Xet protocol, which the stand-in does not speak.
    """
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    template = f"{hub.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)


@contextmanager
def serving(folder: Path, repository: str):
    hub = Hub(folder, repository)
    thread = threading.Thread(target=hub.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()


@contextmanager
def serving_apart(folder: Path, repository: str, *, rate: float = 0.0, line: float = 0.0):
    """From another process, which takes nothing of this one's speed and memory; gives what `use` needs."""
    words = [sys.executable, __file__, str(folder), repository, str(rate), str(line)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield SimpleNamespace(address=process.stdout.readline().strip())
        finally:
            process.kill()


if __name__ == "__main__":
    with Hub(Path(sys.argv[1]), sys.argv[2]) as apart:
        apart.rate, apart.line = float(sys.argv[3]), float(sys.argv[4])
        print(apart.address, flush=True)
        apart.serve_forever()
