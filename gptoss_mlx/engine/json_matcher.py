"""Rules of a schema -> llguidance's matcher of texts that fit them, with the limits that keep it from taking forever.

Knows llguidance's options and how it says what is wrong; rules come as `json_schema` reads them.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ..errors import GptOssError
from .json_schema import Schema, relaxed

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

OPTIONS: Any = {
    # Between two parts of the JSON: nothing, a space, or a new line with its indentation. A model that may write blanks
    # without end sometimes does.
    "whitespace_pattern": r"\x20|\x0A\x20{0,32}",
    # No \uXXXX: it would pass for the name of a further property where it spells one that the schema names.
    "json_allowed_escapes": '"\\bfnrt',
    # A oneOf is taken for an anyOf; `json_check` knows the difference.
    "lenient": True,
}

# What a patient person can wait for: schemas of a thousand optional properties, and texts limited in words and length.
LIMITS: Any = {"max_items_in_row": 50_000, "step_max_items": 1_000_000, "step_lexer_fuel": 3_000_000}

NO_TEXT = ("", "NoExtension", "NoExtensionBias")  # how llguidance puts it


@lru_cache(maxsize=1024)
def try_pattern(pattern: str) -> None:
    """Raises GptOssError for a regular expression that llguidance cannot use, or that no string of a grammar fits."""
    from llguidance import LLTokenizer

    matcher_of(relaxed({"type": "string", "pattern": pattern}), LLTokenizer("byte"))


def string_fits(keyword: str, value: str, text: str) -> bool:
    """Whether a string fits a `pattern` or a `format`. Raises GptOssError where that takes too long."""
    matcher = _string_matcher(keyword, value).deep_copy()
    data = json.dumps(text, ensure_ascii=False).encode()
    fits = matcher.try_consume_tokens([*data]) == len(data) and matcher.is_accepting()
    check_matcher(matcher)
    return fits


@lru_cache(maxsize=256)
def _string_matcher(keyword: str, value: str) -> LLMatcher:
    from llguidance import LLTokenizer

    return matcher_of({"type": "string", keyword: value}, LLTokenizer("byte"))


def matcher_of(rules: Schema, vocabulary: LLTokenizer) -> LLMatcher:
    """The grammar of rules, before the first token. Raises GptOssError."""
    from llguidance import LLMatcher, LLParserLimits

    rules = rules if isinstance(rules, dict) else {"allOf": [rules]}
    try:
        grammar = LLMatcher.grammar_from_json_schema(json.dumps(rules, allow_nan=False), overrides=OPTIONS)
    except (TypeError, ValueError, RecursionError) as error:
        raise GptOssError(f"the JSON schema cannot be used: {error}") from None
    matcher = LLMatcher(vocabulary, grammar, log_level=0, limits=LLParserLimits(verbose_errors=False, **LIMITS))
    check_matcher(matcher)
    matcher.compute_bitmask()  # a schema that only refers to itself shows here
    check_matcher(matcher)
    return matcher


def check_matcher(matcher: LLMatcher) -> None:
    """Raises GptOssError where a text can neither go on nor end."""
    if matcher.is_error() or (matcher.is_stopped() and not matcher.is_accepting()):
        raise GptOssError(f"the JSON schema cannot be used: {_reason(matcher.get_error())}")


def _reason(error: str) -> str:
    """llguidance's words, without what only its own users could do about it, and without names that nobody gave."""
    reason = " ".join(error.removesuffix("<non-verbose/>").split())
    if reason in NO_TEXT or "Regex is empty" in reason:
        return "no text fits it"
    return re.split(r"; (?:either increase|consider)| while processing #|: json-schema:", reason)[0]
