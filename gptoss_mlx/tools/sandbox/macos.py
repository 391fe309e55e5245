"""The sandbox on macOS: a Seatbelt profile, after public descriptions of its language. It has not been run yet."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator

SANDBOX_EXEC = "/usr/bin/sandbox-exec"
# Later rules win over earlier ones. Without process-fork, one process is all that there will be.
PROFILE = """\
(version 1)
(deny default)
(import "system.sb")
(deny network*)
(deny file-write*)
(deny file-read* (subpath {home}))
(allow sysctl-read)
(allow process-info* signal (target self))
(allow process-exec* {interpreter})
(allow file-read* file-map-executable (literal "/") {system} {interpreter})
(allow file-read-metadata {above})
(allow file-read* file-write* (subpath {folder}))
(allow file-write-data (literal "/dev/null"))
"""
MAC_SYSTEM = ("/usr/lib", "/usr/share", "/System", "/opt/homebrew/Cellar", "/opt/homebrew/opt", "/opt/homebrew/lib")


def profile(folder: str, home: str, shown: Iterable[str]) -> str:
    """The profile for a worker that may write in `folder` and read what is `shown`. Seatbelt compares real paths."""
    readable = dict.fromkeys(os.path.realpath(path) for path in shown if os.path.exists(path))
    above = {parent for path in (folder, *readable) for parent in parents(path)}
    return PROFILE.format(
        home=quoted(os.path.realpath(home)),
        folder=quoted(folder),
        interpreter=" ".join(f"(subpath {quoted(path)})" for path in readable),
        system=" ".join(f"(subpath {quoted(path)})" for path in MAC_SYSTEM),
        above=" ".join(f"(literal {quoted(path)})" for path in sorted(above)),
    )


def parents(path: str) -> Iterator[str]:
    while (parent := os.path.dirname(path)) != path:
        yield parent
        path = parent


def quoted(path: str) -> str:
    return json.dumps(path, ensure_ascii=False)
