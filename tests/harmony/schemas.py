"""Random functions with all that a JSON schema can say, and texts that are hard to split into lines or to quote."""

from __future__ import annotations

import struct
from random import Random
from typing import Any

from harmony.cases import function

TEXTS = (
    "",
    "a",
    "Two\nlines",
    "cr\rin it",
    "dos\r\nlines\r\n",
    "end\n",
    "\n",
    "\r",
    "a\r\r\nb",
    "vt\x0bff\x0c",
    "nel\x85",
)
TEXTS += ("ls\u2028ps\u2029", "\x1cfs\x1e", '"quoted" \\back', " blanks ", "null", "日本 👍", "// slashes", "\x00\x7f")
NAMES = ("x", "y1", "with-dash", "with space", "日本")


def number(random: Random) -> float:
    """An integer or a float that is finite."""
    value = struct.unpack("d", struct.pack("Q", random.getrandbits(64)))[0]
    return random.choice(
        [
            random.randrange(-(10**25), 10**25),
            random.randrange(-(2**64), 2**65),
            random.randrange(1000) / 10 ** random.randrange(30),
            random.randrange(1000) * 10.0 ** random.randrange(30),
            float(random.randrange(10**17)),
            -0.0,
            value if value - value == 0 else 1.0,
        ]
    )


def value(random: Random, depth: int = 2) -> Any:
    """Anything that a default can be."""
    kind = random.randrange(7 if depth else 5)
    if kind == 5:
        return [value(random, depth - 1) for _ in range(random.randrange(3))]
    if kind == 6:
        return {random.choice([*NAMES, *TEXTS]): value(random, depth - 1) for _ in range(random.randrange(3))}
    return [number(random), random.choice(TEXTS), None, True, random.randrange(100)][kind]


def schema(random: Random, depth: int = 3) -> Any:
    """A schema with each keyword now and then, in places where it means nothing too."""
    kinds = [
        "string",
        "number",
        "integer",
        "boolean",
        "null",
        "array",
        "object",
        "date",
        ["string", "null"],
        ["integer"],
    ]
    out: dict[str, Any] = {} if random.random() < 0.1 else {"type": random.choice(kinds)}
    if out.get("type") == "object" or random.random() < 0.05:
        names = random.sample(NAMES, random.randrange(4))
        out["properties"] = {name: schema(random, depth - 1) if depth else {} for name in names}
        out["required"] = random.sample(NAMES, random.randrange(3))
    if (out.get("type") == "array" and random.random() < 0.8) or random.random() < 0.05:
        out["items"] = schema(random, depth - 1) if depth else {"type": "string"}
    if depth and random.random() < 0.1:
        out["oneOf"] = [schema(random, depth - 1) for _ in range(random.randrange(1, 4))]
    if random.random() < 0.2:
        out["enum"] = random.sample(TEXTS, random.randrange(4))
    if random.random() < 0.3:
        out["default"] = value(random)
    for keyword in ("title", "description"):
        if random.random() < 0.3:
            out[keyword] = random.choice(TEXTS)
    if random.random() < 0.1:
        out["examples"] = random.sample(TEXTS, random.randrange(3))
    if random.random() < 0.1:
        out["nullable"] = random.random() < 0.8
    return out


def tool(random: Random) -> dict[str, Any]:
    """A function as chat completions have it."""
    parameters = schema(random) if random.random() < 0.9 else None
    return function(random.choice(["f", "get_it", "a.b"]), random.choice(TEXTS), parameters)
