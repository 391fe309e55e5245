"""The text that is measured on where nobody gives one."""

from __future__ import annotations

from pathlib import Path

TEXT = Path(__file__).with_name("text.txt")  # what is compared on where nobody gives a text
