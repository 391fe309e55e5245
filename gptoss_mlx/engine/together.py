"""Tokens of several conversations in one step of the network.

Each conversation says which token comes next, and later takes its logits: those of all that have said so are computed
when the first one takes them. So the conversations need not know of each other, and one that is alone loses nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from ..model.kv_cache import KVCache
from ..model.network import Transformer


@dataclass(eq=False)
class NextToken:
    """A token that is to be read, and the logits after it [1, vocabulary] when it was."""

    id: int
    cache: KVCache
    logits: mx.array | None = None


class Together:
    """The next tokens of conversations, all on one thread."""

    def __init__(self, network: Transformer):
        self._network, self._at_once = network, network.at_once
        self._waiting: list[NextToken] = []

    def add(self, id_: int, cache: KVCache) -> NextToken:
        token = NextToken(id_, cache)
        self._waiting.append(token)
        return token

    def remove(self, token: NextToken) -> None:
        """It is not to be read, if it was not."""
        if token in self._waiting:
            self._waiting.remove(token)

    def logits(self, token: NextToken) -> mx.array:
        """Those after a token that was added, [1, vocabulary], not yet evaluated."""
        if token.logits is None:
            others = [each for each in self._waiting if each is not token][: self._at_once - 1]
            read = [token, *others]
            self._waiting = [each for each in self._waiting if each not in read]
            if others:
                hidden = self._network.hidden_together([each.id for each in read], [each.cache for each in read])
            else:
                hidden = self._network.hidden(mx.array([[token.id]]), token.cache)
            logits = self._network.logits(hidden)
            for index, each in enumerate(read):
                each.logits = logits[:, index]
        assert token.logits is not None
        return token.logits
