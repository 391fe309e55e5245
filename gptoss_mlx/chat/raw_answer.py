"""What a model writes after a bare text, without any conversation around it."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing

from ..engine.generate import Model
from ..engine.prompt_cache import PromptCache
from ..engine.sampling import Sampler
from ..errors import GptOssError
from ..harmony.parse import Content
from .request import AnswerEvent, AnswerRequest, AnswerStats
from .stop_texts import StopTexts
from .turn import TokenLogprobs, Waiting, read_on


class RawAnswer:
    """`write` yields the events of the answer, `AnswerStats` last. Special tokens that the model writes are no text."""

    def __init__(self, ids: Sequence[int], request: AnswerRequest, model: Model):
        """Raises ContextFull for a prompt that leaves no room for an answer, GptOssError for an empty one, and for
        ids that are no tokens."""
        if unknown := [id_ for id_ in ids if not 0 <= id_ < model.config.vocab_size]:
            raise GptOssError(f"token id {unknown[0]} is outside the vocabulary of {model.config.vocab_size:,}")
        if not ids:
            raise GptOssError("there is no prompt")
        if len(ids) >= model.context:
            raise model.full(f"{len(ids):,} tokens")
        self.prompt = list(ids)
        self.finished = False
        self._request, self._model = request, model
        self._written: list[int] = []
        self._text = model.tokenizer.stream()
        self._stop = StopTexts(request.stop)
        self._cached: int | None = None

    @property
    def ids(self) -> list[int]:
        """All that the prompt cache has to hold to go on."""
        return self.prompt + self._written

    def next_prompt(self) -> list[int]:
        """What a next prompt will begin with, where that differs from `ids`: it does not."""
        return []

    def write(self, prompt_cache: PromptCache) -> Generator[AnswerEvent | Waiting, None, None]:
        """Go on with the answer; where this is closed at a `Prefill` or `Waiting`, it can be called again."""
        if self._cached is None:
            self._cached = min(prompt_cache.cached_of(self.prompt), len(self.prompt) - 1)
        logits = yield from read_on(prompt_cache.read_steps(self.ids))
        limit = self._request.max_tokens and self._request.max_tokens - len(self._written)
        sampler = Sampler(self._request.sampling, context=self.ids, logprobs=self._request.logprobs)
        stopped = False
        with closing(prompt_cache.decode(logits, sampler=sampler, max_tokens=limit)) as ids:
            for id_ in ids:
                self._written.append(id_)
                stopped = id_ in self._model.stop_ids
                is_text = id_ not in self._model.tokenizer.specials
                if is_text and (text := self._text.feed(id_)):
                    yield from self._stop.feed(Content(text))
                if self._request.logprobs is not None:
                    logprob, likeliest = sampler.next_logprobs()
                    if is_text:
                        yield self._logprobs(id_, logprob, likeliest)
                if self._stop.found is not None:
                    break
                yield Waiting()
        self.finished = True
        if rest := self._text.flush():
            yield from self._stop.feed(Content(rest))
        yield from self._stop.rest()
        yield AnswerStats(
            reason="stop" if stopped or self._stop.found is not None else "length",
            prompt=len(self.prompt),
            cached=self._cached,
            sampled=len(self._written),
            reasoning=0,
            stopped_by=self._stop.found,
        )

    def _logprobs(self, id_: int, logprob: float, likeliest: Sequence[tuple[int, float]]) -> TokenLogprobs:
        bytes_of = self._model.tokenizer.bytes_of
        return TokenLogprobs(bytes_of(id_), logprob, tuple((bytes_of(other), value) for other, value in likeliest))
