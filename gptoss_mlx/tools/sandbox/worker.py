"""The worker: runs code, one request after another, in one namespace of variables, and shows what a notebook shows.

That it is in a sandbox it does not believe but tries. Code can reach all that is in this process; nothing that keeps it
in the sandbox is here.
"""

from __future__ import annotations

import ast
import contextlib
import io
import linecache
import os
import signal
import socket
import sys
import traceback
import types
from typing import Any, TextIO

from .protocol import READY, REPLY, REQUEST, Settings


def work(settings: Settings) -> None:
    """Answer requests until there are no more."""
    if settings.isolation != "none" and (hole := find_hole()):
        print(hole, flush=True)
        os._exit(1)
    folder = os.environ["HOME"] = os.getcwd()
    sys.path.insert(0, folder)
    sys.argv[:] = [""]
    forget_own_modules()
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    for stream in (sys.stdout, sys.stderr):
        assert isinstance(stream, io.TextIOWrapper)
        stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
    # A copy, so that code which closes or redirects its standard output still has its results shown.
    notebook = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="backslashreplace")
    own = os.getpid()
    os.write(settings.replies, REPLY.pack(READY))
    with open(settings.requests, "rb") as requests:
        while header := requests.read(REQUEST.size):
            number, size = REQUEST.unpack(header)
            source = requests.read(size).decode(errors="surrogatepass")
            run(source, f"<call {number}>", main.__dict__, notebook)
            if os.getpid() != own:
                os._exit(0)  # code that forks, and forgets that its child comes here
            os.write(settings.replies, REPLY.pack(number))


def forget_own_modules() -> None:
    """Whatever name the code imports, it does not get one of ours."""
    for name in [name for name in sys.modules if name.partition(".")[0] == __package__]:
        del sys.modules[name]


def run(source: str, name: str, namespace: dict[str, Any], notebook: TextIO) -> None:
    """Execute `source` and show what a notebook shows. SIGINT counts only meanwhile."""
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)  # for tracebacks
    shown = ""
    try:
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            shown = value_of(source, name, namespace)
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
    except BaseException as error:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # again: the interrupt may have come just before
        shown = failure(error)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    notebook.write(shown)
    notebook.flush()


def value_of(source: str, name: str, namespace: dict[str, Any]) -> str:
    """Execute `source`; the repr of its last expression, or nothing if that is None, or no expression."""
    tree = compile(source, name, "exec", ast.PyCF_ONLY_AST, dont_inherit=True)
    assert isinstance(tree, ast.Module)
    last = tree.body[-1] if tree.body else None
    if isinstance(last, ast.Expr):
        tree.body.pop()
    exec(compile(tree, name, "exec", dont_inherit=True), namespace)
    if not isinstance(last, ast.Expr):
        return ""
    value = eval(compile(ast.Expression(last.value), name, "eval", dont_inherit=True), namespace)
    return "" if value is None else f"{value!r}\n"


def failure(error: BaseException) -> str:
    """The traceback, without the frames of this file."""
    frames = error.__traceback__
    while frames and frames.tb_frame.f_code.co_filename == __file__:
        frames = frames.tb_next
    try:
        return "".join(traceback.format_exception(type(error), error, frames))
    except Exception:  # the exception's class is the model's, too
        return f"{type(error).__name__}\n"


def find_hole() -> str | None:
    """What a sandbox must not allow and this one does, or None. Tried, not deduced."""
    for folder in ("/", os.path.dirname(__file__)):
        probe = os.path.join(folder, f".gptoss-mlx-{os.getpid()}")
        with contextlib.suppress(OSError):
            open(probe, "x").close()
            os.unlink(probe)
            return f"files in {folder} can be written"
    if sys.platform == "linux":
        others = [name for _, name in socket.if_nameindex() if name != "lo"]
        return f"the network interface {others[0]} is there" if others else None
    try:
        with socket.socket() as probing:
            probing.connect(("127.0.0.1", 9))
    except PermissionError:
        return None
    except OSError:
        pass
    return "the network can be reached"
