"""A server of a model, as `serve` starts it: where it listens, who may ask, what it says, how it ends."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from ..errors import GptOssError, printable
from ..files import lock, open_own_folder, remove_tree
from ..memory.system import parse_size, size_text
from ..model.model_store import display_name, home, remember, user_file, usual_model
from ..untrusted import os_error_text
from .chat import session_maker
from .loading import model_folder, plan_to_keep, use_threads
from .options import ChatOptions, ModelOptions, ToolOptions

if TYPE_CHECKING:
    from ..memory.plan import MemoryPlan
    from ..server.security import Access
    from ..terminal.progress_bars import PrefillProgress

KEY_FILE = "server-key"  # a `user_file`
CACHES = "server-caches"  # a folder in `home`, with one for each server that runs
ENDING = "the server is ending"


@dataclass(frozen=True)
class ServeOptions:
    """The options of `serve` that no other command has."""

    host: str
    port: int
    parallel: int
    no_kv: bool
    kv_limit: str
    allow_origin: tuple[str, ...]
    key_file: Path | None
    tls_cert: Path | None
    tls_key: Path | None


@dataclass(frozen=True)
class Place:
    """Where a server listens."""

    sockets: list[socket.socket]
    host: str
    """The host as it was named."""
    scheme: str

    @property
    def port(self) -> int:
        return self.sockets[0].getsockname()[1]

    @property
    def on_network(self) -> bool:
        return not all(ip_address(each.getsockname()[0]).is_loopback for each in self.sockets)

    @property
    def url(self) -> str:
        """The address for others; one of this machine's, where it listens at all of them."""
        host = self.host
        if host in ("0.0.0.0", "::"):
            host = _own_address() or socket.gethostname()
        return f"{self.scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"


def serve_model(
    model: str | None, options: ServeOptions, chat: ChatOptions, tools: ToolOptions, model_options: ModelOptions
) -> None:
    """Serve until a signal says to end; Ctrl-C raises KeyboardInterrupt."""
    signal.signal(signal.SIGTERM, _exit)
    new_session = session_maker(chat, tools)
    if options.tls_key and not options.tls_cert:
        raise click.UsageError("--tls-key goes with --tls-cert")
    if options.tls_cert:
        _check_certificate(options.tls_cert, options.tls_key)
    place = Place(_listen(options.host, options.port), options.host, "https" if options.tls_cert else "http")
    access, key_line = _access(place, options.allow_origin, options.key_file)
    folder = model_folder(model or usual_model())
    use_threads(model_options.threads)
    plan = plan_to_keep(folder, model_options)

    from ..chat.store import Store, sessions_folder
    from ..engine.generate import load
    from ..server.app import make_app
    from ..server.connections import GracefulServer
    from ..server.conversations import Conversations
    from ..server.service import open_service

    async def run(caches: Path | None, progress: PrefillProgress | None) -> int | None:
        name, kv_limit = display_name(folder), parse_size(options.kv_limit)
        service = await open_service(
            lambda: load(folder, plan.settings),
            name,
            places=options.parallel,
            folder=caches,
            disk_limit=kv_limit,
        )
        service.sampling = chat.sampling(greedy=service.model.is_greedy)
        conversations = Conversations(
            service, Store(sessions_folder()), new_session, kv_limit=None if options.no_kv else kv_limit
        )
        try:
            app = make_app(service, access, progress, conversations)
            server = GracefulServer(
                app, lambda: service.close(ENDING), certificate=options.tls_cert, private_key=options.tls_key
            )
            remember(folder)
            _announce(place, name, plan, options.parallel, access, key_line)
            await server.serve(sockets=place.sockets)
            return server.ended_by
        finally:
            await conversations.close()
            service.close(ENDING)

    with _cache_folder(not options.no_kv) as caches, _logging() as progress:
        ended_by = asyncio.run(run(caches, progress))
    if ended_by == signal.SIGINT:
        raise KeyboardInterrupt


def _exit(*_: object) -> NoReturn:
    sys.exit(0)


def _listen(host: str, port: int) -> list[socket.socket]:
    """Sockets at all addresses of a host, with one port. Raises GptOssError."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise GptOssError(f"there is no host {host!r}: give an address of this machine with --host") from None
    sockets: list[socket.socket] = []
    try:
        # With its protocol, by which asyncio knows that small writes are not to wait for each other.
        for family, kind, protocol, _, address in dict.fromkeys(found):
            sockets.append(listening := socket.socket(family, kind, protocol))
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(host != "::"))
            listening.bind((address[0], sockets[0].getsockname()[1] or port, *address[2:]))
            listening.listen()
    except OSError as error:
        for each in sockets:
            each.close()
        raise GptOssError(_why_not(error, host, port)) from None
    return sockets


def _why_not(error: OSError, host: str, port: int) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            see = f"lsof -nP -iTCP:{port} -sTCP:LISTEN"
            return f"port {port} is in use: give another one with --port, or see by which program with `{see}`"
        case errno.EACCES:
            return f"there is no permission to listen at port {port}: give one of 1024 or more with --port"
        case errno.EADDRNOTAVAIL:
            return f"{host} is no address of this machine: give one with --host, or 0.0.0.0 for all"
    return f"cannot listen at {host}, port {port}: {os_error_text(error)}"


def _check_certificate(certificate: Path, private_key: Path | None) -> None:
    """Raises GptOssError."""
    import ssl

    def no_password() -> NoReturn:
        raise GptOssError(f"the private key in {private_key or certificate} has a password: give one without")

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, private_key, no_password)
    except OSError as error:  # ssl.SSLError too
        files = " and ".join(str(file) for file in (certificate, private_key) if file)
        raise GptOssError(f"cannot use the certificate in {files}: {os_error_text(error)}") from None


def _access(place: Place, origins: tuple[str, ...], key_file: Path | None) -> tuple[Access, str | None]:
    """Who may ask, and what is to be said of the key, if it was made now. Raises GptOssError."""
    from ..server.security import Access, own_key, parse_origin, read_key

    allowed = frozenset(map(parse_origin, origins))
    key, line = read_key(key_file) if key_file else None, None
    names: set[str] = set()
    if place.on_network:
        if not key:
            own_file = user_file(KEY_FILE)
            key, is_new = own_key(own_file)
            line = f"key: {key if is_new or sys.stdout.isatty() else 'the same as before'}, in {own_file}"
        own = socket.gethostname().lower()
        names = {own, own.partition(".")[0], own.partition(".")[0] + ".local", place.host.lower()}
    # Behind a proxy, its name is the one that is asked for: a page of that name is trusted already.
    names |= {origin.partition("://")[2].partition(":")[0] for origin in allowed}
    return Access(key, place.on_network, frozenset(names), allowed), line


def _own_address() -> str | None:
    """This machine's address in its network. Nothing is sent: a datagram socket only chooses its way."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            asking.connect(("192.0.2.1", 9))  # an address that is nobody's
        except OSError:
            return None
        return asking.getsockname()[0]


def _announce(place: Place, name: str, plan: MemoryPlan, parallel: int, access: Access, key_line: str | None) -> None:
    settings = plan.settings
    lines = [
        f"{name} is served at {place.url}",
        f"APIs: {place.url}/v1 (OpenAI), {place.url} (Anthropic); page: {place.url}/",
        f"{size_text(plan.total)} of {size_text(plan.device.memory)}, context {settings.context:,} tokens,"
        f" {settings.kv_bits}-bit KV cache, {parallel} answers at a time; Ctrl-C ends",
    ]
    click.echo("\n".join(map(printable, filter(None, (*lines, key_line)))))
    if place.on_network and sys.stdout.isatty():
        _print_qr_code(f"{place.url}/#key={access.key}")
    sys.stdout.flush()
    if place.on_network and place.scheme == "http":
        click.echo("warning: others in the network can read what is sent: give --tls-cert to encrypt it", err=True)


def _print_qr_code(text: str) -> None:
    """Of the page with the key, for a phone's camera; nothing where the terminal lacks the characters for it."""
    import segno

    try:
        "▀▄█".encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        return
    segno.make(text, micro=False).terminal(sys.stdout, border=2, compact=True)


@contextmanager
def _cache_folder(wanted: bool) -> Iterator[Path | None]:
    """A new folder for KV caches, removed at the end, as are those of servers that were killed. None where there can be
    none."""
    if not wanted:
        yield None
        return
    root = home() / CACHES
    try:
        os.close(open_own_folder(root, 0o700))
        for left in root.iterdir():
            _remove_unlocked(left)
        folder = Path(tempfile.mkdtemp(dir=root))
        descriptor = open_own_folder(folder)
    except OSError as error:
        raise GptOssError(f"cannot save KV caches in {root}: {os_error_text(error)}: give --no-kv") from None
    lock(descriptor)
    try:
        yield folder
    finally:
        os.close(descriptor)
        shutil.rmtree(folder, ignore_errors=True)


def _remove_unlocked(folder: Path) -> None:
    descriptor = open_own_folder(folder)
    try:
        if lock(descriptor):
            remove_tree(folder)
    finally:
        os.close(descriptor)


@contextmanager
def _logging() -> Iterator[PrefillProgress | None]:
    """Inside, a line for each request on standard error; and how far a prompt has been read, where it is a terminal."""
    log = logging.getLogger("gptoss_mlx")
    if not sys.stderr.isatty():
        with _handled(log, _Lines()):
            yield None
        return
    from rich.console import Console

    from ..terminal.job_control import suspendable
    from ..terminal.progress_bars import PrefillProgress

    progress = PrefillProgress(Console(stderr=True))
    with suspendable(progress.hide, progress.show), _handled(log, _Lines(progress.hide, progress.show)):
        try:
            yield progress
        finally:
            progress.stop()


@contextmanager
def _handled(log: logging.Logger, handler: logging.Handler) -> Iterator[None]:
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


class _Lines(logging.Handler):
    """The log on standard error. Of an error it shows where, and not its message, which can hold content."""

    def __init__(self, *around: Callable[[], None]):
        """`around` hides and shows what is drawn there."""
        super().__init__()
        self._around = around
        self.setFormatter(_Formatter("%(asctime)s %(message)s", "%H:%M:%S"))

    def emit(self, record: logging.LogRecord) -> None:
        for step in self._around[:1]:
            step()
        click.echo(self.format(record), err=True)
        for step in self._around[1:]:
            step()


class _Formatter(logging.Formatter):
    def formatException(self, ei: Any) -> str:  # the name is logging's
        kind, _, frames = ei
        return "".join(traceback.format_tb(frames)) + kind.__name__
