"""The fields of a request, read with their types: a RequestError names the one that is wrong.

Knows JSON values and ranges, and the names that clients give to the settings of sampling; what other fields mean is
each protocol's business. Null is as good as absent, everywhere.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ..engine.sampling import Sampling
from .errors import RequestError

MAX_INTEGER = 2**63 - 1
MAX_TEXTS = 32
SMALLEST_TOP_P = 1e-6  # which keeps the likeliest token alone, as clients mean a top_p of 0
# Settings that would change the answer and are not to be had, with the values that change nothing.
NEUTRAL_SAMPLING: Mapping[str, Any] = {"frequency_penalty": 0, "presence_penalty": 0, "logit_bias": {}}
REPETITION_PENALTY = ("repetition_penalty", "repeat_penalty")


@dataclass(frozen=True)
class Fields:
    """A JSON object of a request."""

    data: Mapping[str, Any]
    place: str = ""
    """The place of the object in the request, as a prefix of its fields' names: "" or "text.format."."""

    def wrong(self, name: str, complaint: str) -> RequestError:
        """The error for a field; `complaint` follows its name."""
        where = self.place + name
        return RequestError(f"{where} {complaint}", param=where)

    def has(self, name: str) -> bool:
        return self.data.get(name) is not None

    def first(self, names: Collection[str]) -> str:
        """The first of several names of a field that is there; the first of all where none is."""
        return next((name for name in names if self.has(name)), next(iter(names)))

    def text(self, name: str) -> str | None:
        value = self.data.get(name)
        if value is not None and not isinstance(value, str):
            raise self.wrong(name, "is not a string")
        return value

    def flag(self, name: str) -> bool:
        """False where it is absent."""
        value = self.data.get(name)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(name, "is not true or false")
        return bool(value)

    def number(self, name: str, minimum: float, maximum: float) -> float | None:
        value = self.data.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(name, "is not a number")
        if not minimum <= value <= maximum:
            raise self.wrong(name, f"is {shortened(value)}, not from {minimum:g} to {maximum:g}")
        return float(value)

    def integer(self, name: str, minimum: int = 0, maximum: int = MAX_INTEGER) -> int | None:
        """Also one that is written with a fraction of zero."""
        value = self.data.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or (value != value or value % 1 != 0):
            raise self.wrong(name, "is not an integer")
        if not minimum <= value <= maximum:
            bounds = f"{minimum} or more" if value < minimum else f"at most {maximum}"
            raise self.wrong(name, f"is {shortened(value)}, not {bounds}")
        return int(value)

    def choice(self, name: str, choices: Collection[str]) -> str | None:
        value = self.text(name)
        if value is not None and value not in choices:
            raise self.wrong(name, f"is {shortened(value)}, not one of {', '.join(choices)}")
        return value

    def object(self, name: str) -> Fields:
        """Without fields where it is absent."""
        value = self.data.get(name)
        if value is not None and not isinstance(value, dict):
            raise self.wrong(name, "is not a JSON object")
        return Fields(value or {}, f"{self.place}{name}.")

    def list(self, name: str) -> list[Any]:
        """Empty where it is absent."""
        value = self.data.get(name)
        if value is not None and not isinstance(value, list):
            raise self.wrong(name, "is not a list")
        return value or []

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of strings that are not empty, or one such string; none where it is absent, or an empty list."""
        value = self.data.get(name)
        texts = [value] if isinstance(value, str) else [] if value is None else value
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise self.wrong(name, "is neither a string nor a list of strings")
        if len(texts) > MAX_TEXTS or not all(texts):
            raise self.wrong(name, f"has an empty string, or more than {MAX_TEXTS} of them")
        return tuple(texts)

    def only_neutral(self, neutral: Mapping[str, Any]) -> None:
        """Refuse the fields of `neutral` where they have another value than the one that changes nothing."""
        for name, value in neutral.items():
            if self.has(name) and self.data[name] != value:
                raise self.wrong(
                    name, "is not supported: leave it out" + (f", or {value}" if isinstance(value, int) else "")
                )

    def sampling(self, defaults: Sampling, max_temperature: float = 2) -> Sampling:
        """What is asked for, and `defaults` for the rest. A top_k of -1 keeps all tokens, and a seed of -1 is a
        different one each time: so do other servers of local models read them."""
        self.only_neutral(NEUTRAL_SAMPLING)
        temperature = self.number("temperature", 0, max_temperature)
        top_p, min_p = self.number("top_p", 0, 1), self.number("min_p", 0, 1)
        top_k, seed = self.integer("top_k", -1), self.integer("seed", -MAX_INTEGER - 1, 2**64 - 1)
        penalty = self.number(self.first(REPETITION_PENALTY), 0.01, 100)
        return Sampling(
            temperature=defaults.temperature if temperature is None else temperature,
            top_p=defaults.top_p if top_p is None else max(top_p, SMALLEST_TOP_P),
            top_k=defaults.top_k if top_k is None else max(top_k, 0),
            min_p=defaults.min_p if min_p is None else min_p,
            repetition_penalty=defaults.repetition_penalty if penalty is None else penalty,
            seed=defaults.seed if seed is None else None if seed == -1 else seed % 2**64,
        )


def shortened(value: Any, length: int = 60) -> str:
    """A value as a message can show it."""
    shown = repr(value)
    return shown if len(shown) <= length else shown[:length] + "..."
