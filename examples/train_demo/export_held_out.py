#!/usr/bin/env python3
"""Write the held-out prompts of `gptoss-mlx eval --demo`: `python examples/train_demo/export_held_out.py`.

The first COUNT prompts of each part that has a threshold, rendered, with their answers; and the thresholds.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from typing import Any

from evaluate import THRESHOLDS, answer_of, prompt_of, samples
from gptoss_mlx.demo import HELD_OUT, HELD_OUT_THRESHOLDS
from gptoss_mlx.evaluation.prompts import Call

COUNT = 20  # of each part: half a minute in all


def lines() -> Iterator[dict[str, Any]]:
    for part in THRESHOLDS:
        for sample in samples(part, COUNT):
            answer = answer_of(part, sample)
            if isinstance(answer, Call):
                answer = {"name": answer.name, "arguments": answer.arguments}
            yield {"part": part, "rendered": "".join(prompt_of(part, sample)), "answer": answer}


def main() -> None:
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines())
    HELD_OUT.write_bytes(gzip.compress(text.encode(), mtime=0))
    HELD_OUT_THRESHOLDS.write_text(json.dumps(THRESHOLDS, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
