"""The held-out evaluation of the embedded model: prompts that it was not trained on, and for each part of them the
share that has to be answered right.

The prompts were generated and written by examples/train_demo/export_exam.py.
"""

from __future__ import annotations

import gzip
import json

from ..demo import HELD_OUT, HELD_OUT_THRESHOLDS
from ..engine.tokenizer import Tokenizer
from .prompts import Asking, Prompts, read_prompts

MAX_TOKENS = 250  # of one reply; the longest that was trained has about 170


def held_out_prompts(tokenizer: Tokenizer) -> Prompts:
    """Raises GptOssError for a tokenizer without Harmony's special tokens."""
    with gzip.open(HELD_OUT) as lines:
        prompts = read_prompts(lines, HELD_OUT.name, tokenizer, Asking())
    thresholds = json.loads(HELD_OUT_THRESHOLDS.read_text(encoding="utf-8"))
    return Prompts("held-out prompts", prompts, tokenizer, max_tokens=MAX_TOKENS, thresholds=thresholds)
