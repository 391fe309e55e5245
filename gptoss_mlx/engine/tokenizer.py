"""Text <-> token ids, on the model's own tokenizer.json. Ordinary text never becomes a special token.

Knows special tokens by name; what they mean is Harmony's business.
"""

from __future__ import annotations

import json
import math
import re
from codecs import getincrementaldecoder
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import GptOssError
from ..untrusted import lexists, read_regular
from .panics import library_errors

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

# Characters that are encoded at once: the library takes 200 bytes of memory for each, and more outside of ASCII. Of a
# longer text, the last words of such a window could be others with what follows; where it is one word, its last tokens.
WINDOW = 2**16
UNSURE_WORDS, UNSURE_TOKENS = 3, 1 / 4

MAX_BYTES = 40 * 2**20  # half as much again as the published tokenizer.json has
# What it consists of; other kinds of the library's can panic in the middle of a conversation, or take forever.
PARTS = {"BPE", "Split", "ByteLevel"}
PREFIX = re.compile(rb'"continuing_subword_prefix"\s*:(?!\s*(?:null|""))')
ESCAPED = re.compile(rb"\\u00[2-7]")  # a character of that name, written as nobody needs to


class Tokenizer:
    def __init__(self, backend: Backend):
        """`backend` is a `tokenizers.Tokenizer` with byte-level pieces; `load` makes one from a folder."""
        self._backend = backend
        # A tokenizer.json can ask for these, which are for training: padding of any length, say.
        backend.no_padding()
        backend.no_truncation()
        backend.post_processor = None
        # Otherwise a user who types "<|end|>" would end the message.
        backend.encode_special_tokens = True
        added = backend.get_added_tokens_decoder()
        self.specials: dict[int, str] = {id_: token.content for id_, token in added.items() if token.special}
        self._added = {id_: token.content.encode() for id_, token in added.items()}
        self._special_ids = {name: id_ for id_, name in self.specials.items()}

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Read `folder/tokenizer.json`. Raises GptOssError."""
        from tokenizers import Tokenizer as Backend

        path = folder / "tokenizer.json"
        if not lexists(path):
            raise GptOssError(f"{folder} has no tokenizer.json: copy it from the model's repository")
        with library_errors(f"cannot read {path}"):
            data = read_regular(path, MAX_BYTES)
            if _has_prefix(data):
                raise ValueError("a gpt-oss tokenizer has no continuing_subword_prefix")
            backend = Backend.from_buffer(data)
            if strange := _parts(backend) - PARTS:
                raise ValueError(f"a gpt-oss tokenizer has no {', '.join(sorted(strange))}")
            return cls(backend)

    def encode(self, text: str, limit: int | None = None) -> list[int]:
        """Ids of ordinary text: the name of a special token in it is just characters. With `limit`, that many at its
        beginning, and the rest is not looked at. Raises GptOssError."""
        ids: list[int] = []
        start = 0
        with library_errors("tokenizer.json cannot encode text"):
            while start < len(text) and (limit is None or len(ids) < limit):
                found, start = self._encode_from(text, start)
                ids += found
        return ids[:limit]

    def _encode_from(self, text: str, start: int) -> tuple[list[int], int]:
        """The ids of a part of the text, and where it ends: so far ahead of what is not seen that all of the text would
        give the same."""
        encoding = self._backend.encode(text[start : start + WINDOW], add_special_tokens=False)
        if start + WINDOW >= len(text):
            return encoding.ids, len(text)
        spans = encoding.offsets  # of each token, in characters
        count = math.ceil(len(encoding) * (1 - UNSURE_TOKENS))
        unsure = (encoding.token_to_word(len(encoding) - 1) or 0) - UNSURE_WORDS + 1
        if unsure > 0 and (tokens := encoding.word_to_tokens(unsure)):
            count, _ = tokens
        while count and spans[count - 1][1] > spans[count][0]:
            count -= 1  # within a character
        if not count:
            return self._backend.encode(text[start:], add_special_tokens=False).ids, len(text)
        return encoding.ids[:count], start + spans[count][0]

    def encode_markup(self, text: str) -> list[int]:
        """Ids of text in which the names of special tokens stand for them: for prompts of our own, never a user's."""
        ids = []
        for part in self._special_pattern.split(text):
            ids.extend([self._special_ids[part]] if part in self._special_ids else self.encode(part))
        return ids

    @cached_property
    def _special_pattern(self) -> re.Pattern[str]:
        return re.compile("(" + "|".join(map(re.escape, self._special_ids)) + ")")

    def special(self, name: str) -> int:
        """The id of a special token such as `<|start|>`. Raises GptOssError where the vocabulary lacks it."""
        if name not in self._special_ids:
            raise GptOssError(f"the tokenizer has no special token {name}: not one of a gpt-oss model")
        return self._special_ids[name]

    def decode(self, ids: list[int]) -> str:
        """Text of ids; special tokens by name, bytes that are not UTF-8 as U+FFFD. Raises GptOssError."""
        with library_errors("tokenizer.json cannot decode tokens"):
            return self._backend.decode(ids, skip_special_tokens=False)

    @cached_property
    def longest(self) -> int:
        """Bytes of the longest token that text can have: it has no fewer tokens than its bytes have room for."""
        added = (len(content) for id_, content in self._added.items() if id_ not in self.specials)
        return max(*map(len, self._backend.get_vocab(with_added_tokens=False)), *added)

    @property
    def size(self) -> int:
        """How many ids stand for something."""
        return self._backend.get_vocab_size()

    @property
    def largest_id(self) -> int:
        """Of the ids of ordinary text: tokens that somebody added are not looked at."""
        return max(self._backend.get_vocab(with_added_tokens=False).values(), default=0)

    def bytes_of(self, id_: int) -> bytes:
        """What a token stands for: part of a character perhaps. A special token's name; of an unknown id, nothing."""
        if id_ in self._added:  # as they are, where others are byte by byte
            return self._added[id_]
        piece = self._backend.id_to_token(id_) if 0 <= id_ < 2**32 else None
        if piece is None:
            return b""
        try:
            return piece.translate(_byte_of_symbol()).encode("latin-1")
        except UnicodeEncodeError:
            raise GptOssError(f"tokenizer.json has the token {piece!r}, which does not stand for bytes") from None

    def stream(self) -> TextStream:
        """A decoder for ids that arrive one by one."""
        return TextStream(self)


@cache
def _byte_of_symbol() -> dict[int, int]:
    """A byte is written as the character of its number, or where that is not printable, as one above 255."""
    from tokenizers.pre_tokenizers import ByteLevel

    symbols = sorted(map(ord, ByteLevel.alphabet()))
    others = iter(sorted({*range(256)}.difference(symbols)))
    return {symbol: symbol if symbol < 256 else next(others) for symbol in symbols}


def _has_prefix(data: bytes) -> bool:
    """Whether merges are to cut a prefix off their second token. Where that cuts through a character, the library does
    not panic but ends the process. Read as JSON, the file would take as long again as it takes the library."""
    if not ESCAPED.search(data):
        return PREFIX.search(data) is not None
    model = json.loads(data)["model"]
    return bool(model.get("continuing_subword_prefix"))


def _parts(backend: Backend) -> set[str]:
    """What a tokenizer is made of, by kind."""
    kinds = {type(backend.model).__name__}
    for part in (backend.normalizer, backend.pre_tokenizer, backend.decoder):
        if part is not None:
            state = json.loads(part.__getstate__())
            kinds |= {step["type"] for step in state.get("pretokenizers", [state])}
    return kinds


class TextStream:
    """Turns ids into text as they arrive, and holds back a character until its last byte is there."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._decoder = getincrementaldecoder("utf-8")("replace")

    def feed(self, id_: int) -> str:
        """The text that `id_` completes, possibly none."""
        return self._decoder.decode(self._tokenizer.bytes_of(id_))

    def flush(self) -> str:
        """What is still held back, incomplete as it is."""
        return self._decoder.decode(b"", final=True)
