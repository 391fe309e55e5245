"""A chat for tests: `python chatting.py MODEL '{"plain": true, "pauses": [12], ...}'`.

Like `gptoss-mlx chat --temperature 0`, with the demo's function, and with what a test decides: `pauses`, after which
events of an answer a file RELEASE, with the number at its end, has to appear; `steps`, whether steps of reading are
events; `asks`, whether the function wants to be
agreed to; `keep`, a session's name; `every_event`, whether each is drawn; `shown_after`, after how many seconds a wait
shows; and options of `terminal.run` and `Session`.
"""

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

from gptoss_mlx import Sampling, Session, load
from gptoss_mlx.demo import FUNCTIONS
from gptoss_mlx.errors import GptOssError
from gptoss_mlx.memory.plan import EngineConfig
from gptoss_mlx.terminal import progress_bars
from gptoss_mlx.terminal.loop import run
from gptoss_mlx.terminal.region import Region

folder, options = Path(sys.argv[1]), json.loads(sys.argv[2])


class PausingSession(Session):
    def _turn(self, *args):
        for count, event in enumerate(super()._turn(*args), 1):
            yield event
            while count in options.get("pauses", ()) and not Path(f"{os.environ['RELEASE']}{count}").exists():
                time.sleep(0.01)


class SessionAutosave:
    """Keeps nothing, and says so where the test wants a disk that is full."""

    def __init__(self, name):
        self.name = name

    def save(self, session, *, kv):
        if self.name == "full":
            raise GptOssError("cannot write full.json: No space left on device")

    def rename(self, name):
        self.name = name

    def leave(self):
        pass


def session(path):
    model = load(path, options.get("context") and EngineConfig(options["context"], 16, 64))
    return PausingSession(
        model,
        functions=[replace(function, asks=options.get("asks", False)) for function in FUNCTIONS],
        sampling=Sampling(temperature=0),
        max_tokens=options.get("max_tokens"),
        yields_steps=options.get("steps", False),
        current_date="2026-01-01",
    )


if options.get("every_event"):
    Region.INTERVAL, Region.SHARE = 0, 1
progress_bars.SHOWN_AFTER = options.get("shown_after", progress_bars.SHOWN_AFTER)
run(
    session(folder),
    show_reasoning=options.get("show_reasoning"),
    history=Path(os.environ["GPTOSS_MLX_HOME"]) / "history",
    autosave=SessionAutosave(options["keep"]) if "keep" in options else None,
    load=session,
    yes=options.get("yes", False),
    plain=options.get("plain", False),
)
