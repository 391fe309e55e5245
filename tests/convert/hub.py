"""A stand-in for the hub: serves one repository from a folder over HTTP, as far as huggingface_hub needs it."""

import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """`requests` are the file names that were fetched; `cut` is a file whose transfer breaks in the middle."""

    def __init__(self, folder: Path, repository: str):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.repository = folder, repository
        self.requests: list[str] = []
        self.cut: str | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path, repository = urlsplit(self.path).path, re.escape(self.server.repository)
        files = sorted(file for file in self.server.folder.rglob("*") if file.is_file())
        names = [str(file.relative_to(self.server.folder)) for file in files]
        if re.fullmatch(rf"/api/models/{repository}(/revision/(main|{COMMIT}))?", path):
            self.send_json({"id": self.server.repository, "sha": COMMIT, "siblings": [{"rfilename": n} for n in names]})
        elif re.fullmatch(rf"/api/models/{repository}/tree/{COMMIT}", path):
            sizes = [file.stat().st_size for file in files]
            self.send_json(
                [
                    {"type": "file", "path": name, "size": size, "oid": hashlib.sha1(name.encode()).hexdigest()}
                    for name, size in zip(names, sizes, strict=True)
                ]
            )
        elif (match := re.fullmatch(rf"/{repository}/resolve/{COMMIT}/(.+)", path)) and match[1] in names:
            self.send_file(match[1])
        else:
            error = "RevisionNotFound" if f"/{self.server.repository}/" in path else "RepoNotFound"
            self.send_json({"error": "not found"}, 404, {"X-Error-Code": error})

    def send_file(self, name: str) -> None:
        data = (self.server.folder / name).read_bytes()
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        first = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if self.command == "GET":
            self.server.requests.append(name)
            data = data[int(first[1]) :] if first else data
        self.send(206 if first else 200, data, headers, cut=name == self.server.cut)

    def send_json(self, data: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send(status, json.dumps(data).encode(), {"Content-Type": "application/json"} | (headers or {}))

    def send(self, status: int, data: bytes, headers: dict[str, str], *, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(data))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self.close_connection = True


@contextmanager
def serving(folder: Path, repository: str):
    hub = Hub(folder, repository)
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()
