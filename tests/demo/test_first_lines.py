"""What people type first: fifty beginnings, to examine a demo model on that is trained on first lines.

`first_lines.jsonl` has the lines of each, and a pattern that the answer to the last of them has to match. The last line
is in a wording that was never trained.
"""

import json
import re
from pathlib import Path

from first_lines import FIRST_LINES, MEMORIES

BEGINNINGS = [json.loads(line) for line in Path(__file__).with_name("first_lines.jsonl").read_text().splitlines()]


def letters(text: str) -> str:
    return re.sub(r"[^a-z0-9{}]+", " ", text.lower()).strip()


def test_none_of_them_was_trained():
    """Nor with a word of theirs in the place of another."""
    trained = [wording for _, wordings, _ in FIRST_LINES for wording in wordings]
    trained += [wording for memory in MEMORIES for wording in (*memory.told, *memory.asked)]
    whole = {letters(wording) for wording in trained if letters(wording.replace("{}", ""))}
    patterns = [re.compile(re.escape(text).replace(r"\{\}", r"\w+")) for text in sorted(whole)]
    assert len(BEGINNINGS) == 50
    asked = [letters(beginning["lines"][-1]) for beginning in BEGINNINGS]
    assert [line for line in asked if any(pattern.fullmatch(line) for pattern in patterns)] == []
