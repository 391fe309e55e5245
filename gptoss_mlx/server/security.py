"""Who may ask: the host that is asked for, the origin of a web page, the key; and the size of a request's head.

A web page that a person visits can send requests to this server from that person's browser. With a name of its own that
resolves to this machine (DNS rebinding) it could read the answers too: so a request has to name a host that is meant,
and the page that sends it has to be this server's or be allowed by name. Bodies are `bodies`'s, connections and time
are `connections`'s. No part of a request becomes a path on the disk.
"""

from __future__ import annotations

import hmac
import re
import secrets
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import GptOssError
from ..files import replace_file
from ..untrusted import os_error_text, read_named
from .errors import RequestError, error_response

MAX_HEADERS = 100
MAX_HEADER_BYTES = 32 * 2**10
MAX_TARGET_BYTES = 8 * 2**10
MIN_KEY = 16  # characters: shorter ones can be guessed
MAX_KEY = 1024
PREFLIGHT_SECONDS = 600

HOST = re.compile(r"(?:\[(?P<address>[0-9a-f:.]+)\]|(?P<name>[a-z0-9._-]+?)\.?)(?::[0-9]{1,5})?")
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]{1,5})?")
KEY = re.compile(rf"[!-~]{{{MIN_KEY},{MAX_KEY}}}")
HEADER_NAMES = re.compile(r"[A-Za-z0-9_, -]*")
DEFAULT_PORTS = {"http": ":80", "https": ":443"}
OPEN_PATHS = ("/", "/health")
OPEN_FOLDER = "/static/"

Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Access:
    """Who may ask."""

    key: str | None = None
    """None: anybody who reaches the server."""
    on_network: bool = False
    """Whether others than this machine reach it: any address may be its own then."""
    names: frozenset[str] = frozenset()
    """Names of this machine, beside localhost, in lower case."""
    origins: frozenset[str] = frozenset()
    """Origins of web pages, beside its own."""

    def serves(self, host: str) -> bool:
        """Whether a Host header names this server. An address cannot be rebound, as a name can."""
        match = HOST.fullmatch(host.lower())
        if not match:
            return False
        name = match["address"] or match["name"]
        if name == "localhost" or name in self.names:
            return True
        try:
            return ip_address(name).is_loopback or self.on_network
        except ValueError:
            return False


def parse_origin(text: str) -> str:
    """An origin as browsers send it. Raises GptOssError."""
    origin = text.lower().rstrip("/")
    if not ORIGIN.fullmatch(origin):
        raise GptOssError(f"{text!r} is not the origin of a web page, such as https://example.org")
    return _without_default_port(origin)


def own_key(file: Path) -> tuple[str, bool]:
    """The key in the program's own file, and whether it was made now. Raises GptOssError."""
    if file.exists():
        return read_key(file), False
    key = secrets.token_urlsafe(32)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GptOssError(f"cannot write {file}: {os_error_text(error)}") from None
    replace_file(file, key + "\n", private=True)
    return key, True


def read_key(file: Path) -> str:
    """The key that a file holds, on a line. Raises GptOssError, also where other users can read it."""
    try:
        key = read_named(file, MAX_KEY + 2).decode("ascii", "replace").strip()
        mode = file.stat().st_mode
    except (OSError, ValueError) as error:
        raise GptOssError(f"cannot read {file}: {os_error_text(error)}") from None
    if stat.S_ISREG(mode) and mode & 0o077:
        raise GptOssError(f"other users can read the key in {file}: run `chmod 600` on it")
    if not KEY.fullmatch(key):
        raise GptOssError(
            f"{file} holds no key: write one line of {MIN_KEY} to {MAX_KEY} ASCII characters without blanks"
        )
    return key


class Guard:
    """Lets a request through to the application, or refuses it."""

    def __init__(self, app: ASGIApp, access: Access):
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        added: Headers = [(b"x-content-type-options", b"nosniff")]
        try:
            _check_size(scope)
            host = self._host(scope)
            if origin := self._foreign_origin(scope, host):
                added += [(b"access-control-allow-origin", origin.encode()), (b"vary", b"origin")]
                if scope["method"] == "OPTIONS" and _values(scope, b"access-control-request-method"):
                    await _allow(scope, send, added)
                    return
            else:
                added.append((b"cross-origin-resource-policy", b"same-origin"))
            self._check_key(scope)
        except RequestError as error:
            challenge = {"www-authenticate": "Bearer"} if error.status == 401 else None
            await error_response(error, scope["path"], challenge)(scope, receive, _with_headers(send, added))
            return
        await self._app(scope, receive, _with_headers(send, added))

    def _host(self, scope: Scope) -> str:
        hosts = _values(scope, b"host")
        if len(hosts) != 1:
            raise RequestError("a request has one Host header")
        if not self._access.serves(hosts[0]):
            raise RequestError(
                f"this server is not {hosts[0][:100]!r}: use its address, or start it with --host and that name",
                status=403,
                code="host_not_allowed",
            )
        return hosts[0].lower()

    def _foreign_origin(self, scope: Scope, host: str) -> str | None:
        """The origin of a web page that is allowed by name; None for the server's own page, and for no page."""
        origins = _values(scope, b"origin")
        if not origins:
            return None
        origin = _without_default_port(origins[0].lower())
        if len(origins) == 1 and origin in self._access.origins:
            return origins[0]
        if len(origins) > 1 or origin != _without_default_port(f"{scope['scheme']}://{host}"):
            raise RequestError(
                f"web pages of {origins[0][:100]!r} may not use this server: allow them with --allow-origin",
                status=403,
                code="origin_not_allowed",
            )
        return None

    def _check_key(self, scope: Scope) -> None:
        path, key = scope["path"], self._access.key
        is_open = path in OPEN_PATHS or path.startswith(OPEN_FOLDER)
        if key is None or (is_open and scope["method"] in ("GET", "HEAD")):
            return
        given = _given_keys(scope)
        # In a time that does not tell how much of it is right.
        if not any(hmac.compare_digest(each.encode("latin-1"), key.encode()) for each in given):
            message = "this key is not the server's" if given else "a key is needed: Authorization: Bearer KEY"
            raise RequestError(message, status=401, code="invalid_api_key")


def _check_size(scope: Scope) -> None:
    if len(scope["raw_path"]) + len(scope["query_string"]) > MAX_TARGET_BYTES:
        raise RequestError("the address is too long", status=414)
    headers = scope["headers"]
    if len(headers) > MAX_HEADERS or sum(len(name) + len(value) for name, value in headers) > MAX_HEADER_BYTES:
        raise RequestError("the headers are too many, or too long", status=431)


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


def _given_keys(scope: Scope) -> list[str]:
    """From both headers that clients use."""
    bearers = (value.partition(" ") for value in _values(scope, b"authorization"))
    keys = [key.strip() for scheme, _, key in bearers if scheme.lower() == "bearer"]
    return [key for key in (*keys, *_values(scope, b"x-api-key")) if key]


def _without_default_port(origin: str) -> str:
    return origin.removesuffix(DEFAULT_PORTS.get(origin.partition("://")[0], ""))


async def _allow(scope: Scope, send: Send, headers: Headers) -> None:
    """Answer a browser that asks whether a page's script may send a request: its headers may be any."""
    names = ", ".join(filter(HEADER_NAMES.fullmatch, _values(scope, b"access-control-request-headers")))
    allowed = {
        "access-control-allow-methods": "GET, POST, PUT, PATCH, DELETE",
        "access-control-allow-headers": names,
        "access-control-max-age": str(PREFLIGHT_SECONDS),
    }
    own = [(name.encode(), value.encode()) for name, value in allowed.items() if value]
    await send({"type": "http.response.start", "status": 204, "headers": headers + own})
    await send({"type": "http.response.body", "body": b""})


def _with_headers(send: Send, added: Iterable[tuple[bytes, bytes]]) -> Send:
    async def forward(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *added]
        await send(message)

    return forward
