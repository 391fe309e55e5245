"""The one model of a server, which answers many requests: each protocol asks it, and none of them knows how.

To come: the thread that owns the model, turns between conversations, the pool of prompt caches.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

from ..chat.request import AnswerEvent, AnswerRequest
from ..engine.sampling import Sampling


class Service:
    """`model_name` is what clients call the model, `context` its tokens, `created` seconds since 1970,
    `sampling` what holds where a request does not say otherwise."""

    model_name: str
    context: int
    created: int
    sampling: Sampling

    def answer(self, request: AnswerRequest) -> AsyncGenerator[AnswerEvent, None]:
        """The events of an answer, `AnswerStats` last. Closing the generator (`aclose`) frees its place.

        Before its first event it raises RequestError for what cannot be answered, such as a prompt that is too long
        (code "context_length_exceeded"); later it raises GptOssError where something goes wrong.
        """
        raise NotImplementedError

    def complete(self, prompt: str | list[int], request: AnswerRequest) -> AsyncGenerator[AnswerEvent, None]:
        """As `answer`, of a bare text or token ids, with what the model writes after it as `Content`; the request's
        conversation, tools and reasoning mean nothing."""
        raise NotImplementedError

    async def count(self, request: AnswerRequest) -> int:
        """Tokens of the prompt."""
        raise NotImplementedError
