"""The exam of the embedded model: held-out prompts, and the share of each part that has to be answered right.

The prompts were generated and written by examples/train_demo/export_exam.py.
"""

from __future__ import annotations

import gzip
import json

from ..demo import EXAM, EXAM_BARS
from ..engine.tokenizer import Tokenizer
from .prompts import Asking, Prompts, read_prompts

MAX_TOKENS = 250  # of one reply; the longest that was trained has about 170


def exam(tokenizer: Tokenizer) -> Prompts:
    """Raises GptOssError for a tokenizer without Harmony's special tokens."""
    with gzip.open(EXAM) as lines:
        prompts = read_prompts(lines, EXAM.name, tokenizer, Asking())
    bars = json.loads(EXAM_BARS.read_text(encoding="utf-8"))
    return Prompts("exam", prompts, tokenizer, max_tokens=MAX_TOKENS, bars=bars)
