"""Which tokens may come next in a text that must be JSON of a schema.

Knows JSON schemas, by way of llguidance, and the bytes that tokens stand for. Where in an answer such a text begins,
how a token is chosen among those that may come, and what to do with a text that broke off are its callers' business.

A schema is followed as it is written: where it does not say `"additionalProperties": false`, there may be more
properties than it names. Those that it names come first, in its order. Of the formats that llguidance knows, as much is
demanded as a regular expression can: 2023-02-29 is a date. The names of further properties may occur twice.

What llguidance cannot hold to (`uniqueItems`, most of `not`, a `oneOf` that overlaps, ...) is not in the grammar: a
finished text may break such a rule still, and has to be checked.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import mlx.core as mx

from ..errors import GptOssError
from ..untrusted import read_json
from .json_check import fault
from .json_matcher import check_matcher, matcher_of, try_pattern
from .json_schema import Schema, read, relaxed, unwrapped

if TYPE_CHECKING:
    import numpy as np
    from llguidance import LLMatcher, LLTokenizer

    from .tokenizer import Tokenizer


def load_schema(path: Path) -> Schema:
    """Read a JSON schema. Raises GptOssError with the file and what is wrong with it."""
    from llguidance import LLTokenizer

    schema = unwrapped(read_json(path))
    try:
        matcher_of(_read(schema)[1], LLTokenizer("byte"))
    except GptOssError as error:
        raise GptOssError(f"{path}: {error}") from None
    return schema


class JsonGrammar:
    """A text while it grows, token by token, up to the stop id after it."""

    def __init__(self, schema: Schema, tokenizer: Tokenizer, vocabulary: int, stop: int):
        """`vocabulary` is the number of logits; `stop` is the id that ends a text, the only special one ever allowed.

        Takes a second and 20 MB for the vocabulary of gpt-oss, if it is another than that of the grammar before. Raises
        GptOssError for a schema that cannot be used.
        """
        self.vocabulary = vocabulary
        self._rules, held = _read(unwrapped(schema))
        self._empty = matcher_of(held, _vocabulary_of(tokenizer, vocabulary, stop))
        self.reset()

    def reset(self) -> None:
        """Back to the empty text."""
        self._matcher: LLMatcher = self._empty.deep_copy()
        self._is_masked = False

    @property
    def finished(self) -> bool:
        """Whether the text is a whole one: `stop` is there, or nothing else can follow. More digits can always follow a
        bare number, which is finished by `stop` only."""
        return self._matcher.is_accepting() and (self._matcher.is_stopped() or self._mask().sum() == 1)

    def allowed(self) -> mx.array:
        """Booleans [vocabulary]: which ids may come next; after a finished text, `stop` alone.

        Raises GptOssError where the schema asks for more states than llguidance keeps.
        """
        mask = self._mask()
        check_matcher(self._matcher)
        self._is_masked = True
        return mx.array(mask)

    def _mask(self) -> np.ndarray:
        import numpy as np

        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        return np.unpackbits(bits, count=self.vocabulary, bitorder="little").view(np.bool_)

    def accept(self, id_: int) -> None:
        """Add a token to the text. Raises GptOssError for one that is not allowed."""
        if not self._is_masked:
            self._matcher.compute_bitmask()  # only this gives llguidance's lexer new fuel
        self._matcher.consume_token(id_)
        self._is_masked = False
        check_matcher(self._matcher)

    def check(self, text: str) -> None:
        """Raises GptOssError where a finished text breaks a rule of the schema that the grammar could not hold."""
        if reason := fault(self._rules, text):
            raise GptOssError(f"the answer does not fit the JSON schema: {reason}")


@lru_cache(maxsize=1)
def _vocabulary_of(tokenizer: Tokenizer, vocabulary: int, stop: int) -> LLTokenizer:
    from llguidance import LLTokenizer, TokenizerWrapper

    return LLTokenizer(TokenizerWrapper(_Vocabulary(tokenizer, vocabulary, stop)))


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


def _read(schema: Schema) -> tuple[Schema, Schema]:
    """The rules of a schema, and those that its grammar can hold. Raises GptOssError."""
    try:
        rules = read(schema, try_pattern)
        return rules, relaxed(rules)
    except RecursionError:
        raise GptOssError("the JSON schema cannot be used: one reference leads to the next too often") from None
