"""The start of a new process: how long until a model has loaded, and until a prompt has its first token.

`python -m gptoss_mlx.bench.first_token FOLDER SETTINGS TOKENS` is that process; it reads the tokenizer too, as a chat
does. The files are in the page cache as far as they fit: nothing is done to put them there, or to remove them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..memory.plan import MemoryPlan
    from .results import Spread

STARTS = 3


def cold_starts(plan: MemoryPlan, tokens: int) -> tuple[Spread, Spread]:
    """Seconds of loading, and from the start of the process to the first token. Raises GptOssError."""
    from .. import kernels
    from ..errors import GptOssError
    from .results import Spread

    environment = os.environ | {"PYTHONSAFEPATH": "1"}  # what lies in the current folder is none of our modules
    if native := kernels.native():
        environment["GPTOSS_MLX_THREADS"] = str(native.threads())
    arguments = [plan.model, json.dumps(asdict(plan.settings)), str(tokens)]
    loads, firsts = [], []
    for _ in range(STARTS):
        # The clock is the system's, the same in all processes.
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", __name__, *arguments], capture_output=True, text=True, env=environment
        )
        if done.returncode:
            reason = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
            raise GptOssError(f"a new process could not run the model: {reason[0]}")
        times = json.loads(done.stdout)
        loads.append(times["loaded"] - times["imported"])
        firsts.append(times["first"] - started)
    return Spread.of(loads), Spread.of(firsts)


def main(folder: Path, settings: dict, tokens: int) -> None:
    from ..engine.generate import load
    from ..engine.sampling import Sampling
    from ..engine.tokenizer import Tokenizer
    from ..memory.estimate import EngineConfig
    from ..untrusted import lexists

    imported = time.monotonic()
    model = load(folder, EngineConfig(**settings))
    loaded = time.monotonic()
    if lexists(folder / "tokenizer.json"):
        Tokenizer.load(folder)
    ids = [id_ % model.config.vocab_size for id_ in range(tokens)]
    next(model.generate(ids, sampling=Sampling(temperature=0), max_tokens=1, stop=()))
    print(json.dumps({"imported": imported, "loaded": loaded, "first": time.monotonic()}))


if __name__ == "__main__":
    from ..errors import GptOssError

    try:
        main(Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3]))
    except GptOssError as error:
        sys.exit(str(error))
