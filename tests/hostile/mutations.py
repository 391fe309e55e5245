"""JSON values that a file could say instead of what it should."""

from __future__ import annotations

import json
from random import Random
from typing import Any

# As they stand in a file: Python's own writer would not write some of them.
LITERALS = [
    *("null", "true", "false", "0", "-1", "1", "0.5", "-0.0", "1e-320", "1e308", "1e999", "NaN", "-Infinity"),
    *("2147483648", "4294967296", "9223372036854775807", "9223372036854775808", "18446744073709551616"),
    *("1" + "0" * 400, "9" * 4300, "1" + "0" * 5000),
    *('""', '"x"', '"BF16"', '"F64"', '"\\u0000"', '"\\u001b]0;owned\\u0007"', '"\\ud800"', '"\\u202e"', '"a\\nb"'),
    *('"../../etc/passwd"', '"/dev/zero"', '"."', '"[/red]"', '"' + "x" * 5000 + '"'),
    *("[]", "{}", "[[]]", "[0]", "[1, 1]", '{"a": 1}', "[1" + ", 1" * 2000 + "]", "[" * 200 + "]" * 200),
]
NAMES = [
    "",
    "dtype",
    "shape",
    "data_offsets",
    "__metadata__",
    "weight_map",
    "mode",
    "bits",
    "\x1b[2J",
    "a\nb",
    "x" * 300,
]


class Literal(str):
    """Text that is JSON already."""


def mutated(value: Any, random: Random) -> Any:
    """A copy of a JSON value with one thing in it changed: replaced, removed, renamed, repeated or added."""
    if not value or not isinstance(value, (dict, list)) or random.random() < 0.15:
        if isinstance(value, int) and random.random() < 0.5:
            return value + random.choice([-1, 1, 2, 8, -(2**31), 2**31, 2**63])
        return Literal(random.choice(LITERALS))
    entries = list(value.items()) if isinstance(value, dict) else [(None, entry) for entry in value]
    place = random.randrange(len(entries))
    name, entry = entries[place]
    match random.randrange(8):
        case 0:
            del entries[place]
        case 1:
            entries.insert(random.randrange(len(entries) + 1), (name, entry))
        case 2:
            entries.append((random.choice(NAMES), Literal(random.choice(LITERALS))))
        case 3:
            entries[place] = (random.choice(NAMES), entry)
        case _:
            entries[place] = (name, mutated(entry, random))
    # Pairs, because an object in a file can have a name twice.
    return Pairs(entries) if isinstance(value, dict) else [entry for _, entry in entries]


class Pairs(dict):
    """An object whose names need not differ."""

    def __init__(self, pairs: list[tuple[str, Any]]):
        super().__init__(pairs)
        self.pairs = pairs

    def items(self):
        return self.pairs


def text_of(value: Any) -> str:
    """JSON of a value that may hold literals and pairs."""
    if isinstance(value, Literal):
        return value
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(name)}: {text_of(entry)}" for name, entry in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(text_of, value)) + "]"
    return json.dumps(value)
