"""What names, codes and texts are drawn from: whatever has to be copied rather than known."""

from __future__ import annotations

import random

SYLLABLES = [
    "ba",
    "ce",
    "do",
    "fi",
    "gu",
    "ha",
    "jo",
    "ka",
    "le",
    "mi",
    "no",
    "pa",
    "ri",
    "so",
    "tu",
    "va",
    "we",
    "zo",
    "lan",
    "mor",
    "ber",
    "tin",
    "dal",
    "ros",
    "ven",
]


def draw_name(r: random.Random) -> str:
    return "".join(r.choice(SYLLABLES) for _ in range(r.randint(2, 3))).capitalize()


def draw_code(r: random.Random) -> str:
    return "".join(r.choice("0123456789") for _ in range(r.randint(3, 5)))


COLOURS = ["red", "blue", "green", "yellow", "purple", "orange", "black", "white", "silver", "brown", "pink", "golden"]
VERBS = ["buy", "call", "meet", "paint", "find", "send", "clean", "fix", "visit"]
CURRENCIES = ["euros", "dollars", "pounds", "yen", "francs", "crowns"]


def draw_text(r: random.Random) -> str:
    thing = r.choice(["car", "house", "door", "book", "boat", "lamp"])
    return f"{r.choice(VERBS)} {r.choice(['the', 'my', 'a'])} {r.choice(COLOURS)} {thing}"
