"""Whether a package index has a newer version, for `gptoss-mlx doctor --check-for-updates`.

One request for the index's list of files in JSON; with it goes nothing but the address and the name of this program.
No index is built in: its address is the one that a person names, or that pip or uv would use.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.client import HTTPException
from importlib.metadata import version
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit, urlunsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from ..errors import GptOssError, printable
from ..untrusted import MAX_JSON, os_error_text, parse_json, parse_toml, read_regular, read_up_to

NAME = "gptoss-mlx"
SECONDS = 5.0  # for the whole answer of the index
PIP_SECONDS = 60.0  # for pip to print its help, however busy this machine is
JSON = "application/vnd.pypi.simple.v1+json"  # of PEP 691
VARIABLES = ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL")
# In the help of `pip install`, which shows what pip's own files and variables say.
PIP_DEFAULT = re.compile(r"Base URL of the Python Package Index \(default (\S+?)\)")
FILE = re.compile(r"gptoss_mlx-(\d{1,6}(?:\.\d{1,6}){0,4})(?:-.*\.whl|\.tar\.gz)")  # no release candidates

Version = tuple[int, ...]


def update_text(index: str) -> str:
    """What the index at an address says, or without one that of pip or uv; or why it says nothing. A line for a
    person."""
    own = version(NAME)
    try:
        newest = newest_version(index or configured_index())
    except GptOssError as error:
        return f"not known: {error}"
    if newest <= _numbers(own):
        return f"{own} is the newest version"
    return f"{'.'.join(map(str, newest))} is there, and this is {own}: update with `{_upgrade()}`"


def newest_version(index: str) -> Version:
    """The newest release of which an index has files that were not withdrawn. Raises GptOssError."""
    url = _page(index)
    shown = printable(url)

    def ask() -> bytes:
        request = Request(url, headers={"Accept": JSON, "User-Agent": NAME})
        with build_opener(_NoRedirect).open(request, timeout=SECONDS) as answer:
            return read_up_to(answer, MAX_JSON)

    try:
        entries = parse_json(_within(SECONDS, ask))
        names = [str(file["filename"]) for file in entries["files"] if not file.get("yanked")]
    except TimeoutError:
        raise GptOssError(f"{shown} did not answer within {SECONDS:.0f} seconds") from None
    except HTTPError as error:
        raise GptOssError(f"{shown} answers with status {error.code}") from None
    except (URLError, HTTPException, OSError) as error:
        reason = error.reason if isinstance(error, URLError) else error
        why = os_error_text(reason) if isinstance(reason, OSError) else str(reason)
        raise GptOssError(f"{shown} cannot be asked ({why or type(error).__name__})") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise GptOssError(
            f"{shown} has no list of files in JSON: name another index with --check-for-updates URL"
        ) from None
    releases = [_numbers(found[1]) for name in names if (found := FILE.fullmatch(name))]
    if not releases:
        raise GptOssError(f"{shown} has no release")
    return max(releases)


def configured_index() -> str:
    """The address of the index that pip or uv would use. Raises GptOssError."""
    for found in _configured():
        return found
    raise GptOssError(
        "neither pip nor uv is here to say which package index to ask: name one with --check-for-updates URL"
    )


def _configured() -> Iterator[str]:
    yield from filter(None, map(os.environ.get, VARIABLES))
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        folder = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
        yield from _of_uv(parse_toml(read_regular(Path(folder, "uv", "uv.toml"), MAX_JSON)))
    with suppress(OSError, subprocess.SubprocessError):
        command = [sys.executable, "-m", "pip", "install", "--help"]
        wide = os.environ | {"COLUMNS": "1000"}  # an address in one piece
        answer = subprocess.run(command, capture_output=True, text=True, timeout=PIP_SECONDS, check=True, env=wide)
        yield from PIP_DEFAULT.findall(answer.stdout)


def _of_uv(settings: dict[str, Any]) -> Iterator[str]:
    yield from (str(index["url"]) for index in settings.get("index", []) if index.get("default"))
    if "index-url" in settings:
        yield str(settings["index-url"])


class _NoRedirect(HTTPRedirectHandler):
    """One request, and to no other machine than the one that was named."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _page(index: str) -> str:
    """The address of this project's page; credentials are left out. Raises GptOssError."""
    try:
        parts = urlsplit(index)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise GptOssError(f"{index} is no address of a package index: name one as https://...")
    place = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, place, f"{parts.path.rstrip('/')}/{NAME}/", "", ""))


def _within(seconds: float, work: Callable[[], bytes]) -> bytes:
    """What `work` returns or raises, or TimeoutError. A socket's own limit counts for each of its steps, and not for
    the look-up of a name."""
    answers: SimpleQueue[bytes | Exception] = SimpleQueue()

    def run() -> None:
        try:
            answers.put(work())
        except Exception as error:
            answers.put(error)

    Thread(target=run, daemon=True).start()
    try:
        answer = answers.get(timeout=seconds)
    except Empty:
        raise TimeoutError from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _numbers(text: str) -> Version:
    return tuple(int(part) for part in re.findall(r"\d+", text))


def _upgrade() -> str:
    """The command that fits the place where this is installed."""
    path = Path(sys.prefix).parts
    if "Cellar" in path:
        return f"brew upgrade {NAME}"
    return f"uv tool upgrade {NAME}" if {"uv", "tools"} <= set(path) else f"pip install --upgrade {NAME}"
