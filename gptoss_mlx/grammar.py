"""Which tokens may come next in a text that must be JSON of a schema.

Knows JSON schemas, by way of llguidance, and the bytes that tokens stand for. Where in an answer such a text begins,
how a token is chosen among those that may come, and what to do with a text that broke off are its callers' business.

A schema is followed as it is written: where it does not say `"additionalProperties": false`, there may be more
properties than it names. Those that it names come first, in its order. It is read as JSON Schema 2020-12, except that

- a `format` is demanded, not just noted, as far as a regular expression can: 2023-02-29 is a date;
- the names of further properties may occur twice, and count twice;
- 0 is taken to be within a range of numbers that ends before 1 or -1, even where the schema excludes it.

What llguidance cannot hold to (`not`, `if`, `uniqueItems`, ...) is refused, never ignored.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from .errors import GptOssError
from .foreign import read_json

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from .tokenizer import Tokenizer

Schema = dict[str, Any] | bool

OPTIONS = {
    # Between two parts of the JSON: nothing, a space, or a new line with its indentation. A model that may write blanks
    # without end sometimes does.
    "whitespace_pattern": r"\x20|\x0A\x20{0,32}",
    # No \uXXXX: it would pass for the name of a further property where it spells one that the schema names.
    "json_allowed_escapes": '"\\bfnrt',
}

NO_TEXT = ("", "NoExtension", "NoExtensionBias")  # how llguidance puts it


def load_schema(path: Path) -> Schema:
    """Read a JSON schema. Raises GptOssError with the file and what is wrong with it."""
    from llguidance import LLTokenizer

    schema = read_json(path)
    try:
        _matcher(schema, LLTokenizer("byte"))
    except GptOssError as error:
        raise GptOssError(f"{path}: {error}") from None
    return schema


class JsonGrammar:
    """A text while it grows, token by token, up to the stop id behind it."""

    def __init__(self, schema: Schema, tokenizer: Tokenizer, vocabulary: int, stop: int):
        """`vocabulary` is the number of logits; `stop` is the id that ends a text, the only special one ever allowed.

        Takes a second and 20 MB for the vocabulary of gpt-oss. Raises GptOssError for a schema that cannot be used.
        """
        from llguidance import LLTokenizer, TokenizerWrapper

        self.vocabulary = vocabulary
        self._empty = _matcher(schema, LLTokenizer(TokenizerWrapper(_Vocabulary(tokenizer, vocabulary, stop))))
        self.reset()

    def reset(self) -> None:
        """Back to the empty text."""
        self._matcher: LLMatcher = self._empty.deep_copy()

    @property
    def finished(self) -> bool:
        """Whether the text is a whole one: `stop` is there, or nothing else can follow. More digits can always follow a
        bare number, which is finished by `stop` only."""
        return self._matcher.is_stopped() and self._matcher.is_accepting()

    def allowed(self) -> mx.array:
        """Booleans [vocabulary]: which ids may come next; behind a finished text, `stop` alone.

        Raises GptOssError where the schema asks for more states than llguidance keeps.
        """
        import numpy as np

        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        _check(self._matcher)
        return mx.array(np.unpackbits(bits, count=self.vocabulary, bitorder="little").view(np.bool_))

    def accept(self, id_: int) -> None:
        """Add a token to the text. Raises GptOssError for one that is not allowed."""
        self._matcher.consume_token(id_)
        _check(self._matcher)


class _Vocabulary:
    """A tokenizer as llguidance takes it: the bytes of each id, none for those that are not text."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, vocabulary: int, stop: int):
        if max(stop, tokenizer.size - 1) >= vocabulary:
            raise GptOssError(f"tokenizer.json does not belong to a model of {vocabulary:,} tokens")
        self.tokens = [b"" if id_ in tokenizer.specials else tokenizer.bytes_of(id_) for id_ in range(vocabulary)]
        self.eos_token_id, self._tokenizer = stop, tokenizer

    def __call__(self, text: bytes) -> list[int]:
        """The ids of text that the schema leaves no choice about."""
        return self._tokenizer.encode(text.decode())


def _matcher(schema: Schema, vocabulary: LLTokenizer) -> LLMatcher:
    """The grammar of a schema, before the first token. Raises GptOssError."""
    from llguidance import LLMatcher, LLParserLimits

    if not isinstance(schema, dict | bool):
        raise GptOssError("a JSON schema is an object, true or false")
    schema = schema if isinstance(schema, dict) else {"allOf": [schema]}
    # "x-guidance" would be llguidance's settings, among them to ignore what it cannot hold to.
    schema = {keyword: value for keyword, value in schema.items() if keyword != "x-guidance"}
    try:
        text = json.dumps(schema, allow_nan=False)
        json.loads(text, parse_int=_exact)
        grammar = LLMatcher.grammar_from_json_schema(text, overrides=OPTIONS)
    except (TypeError, ValueError, RecursionError) as error:
        raise GptOssError(f"the JSON schema cannot be used: {error}") from None
    matcher = LLMatcher(vocabulary, grammar, log_level=0, limits=LLParserLimits(verbose_errors=False))
    _check(matcher)
    matcher.compute_bitmask()  # a schema that only refers to itself shows here
    _check(matcher)
    return matcher


def _exact(digits: str) -> None:
    """Refuses integers that llguidance rounds."""
    if abs(int(digits)) > 2**53:
        raise ValueError(f"{digits} is beyond 2^53")


def _check(matcher: LLMatcher) -> None:
    """Raises GptOssError where a text can neither go on nor end."""
    if matcher.is_error() or (matcher.is_stopped() and not matcher.is_accepting()):
        reason = " ".join(matcher.get_error().removesuffix("<non-verbose/>").split())
        if reason in NO_TEXT:
            reason = "no text fits it"
        raise GptOssError(f"the JSON schema cannot be used: {reason}")
