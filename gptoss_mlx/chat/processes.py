"""Programs that are run for a chat, each the leader of a process group of its own."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress


def signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Signal a program and all that it started, as far as that has stayed in its group."""
    with suppress(ProcessLookupError, PermissionError):  # nobody is left; macOS says the latter of zombies
        os.killpg(process.pid, number)
