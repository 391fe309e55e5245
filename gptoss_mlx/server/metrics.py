"""Counts of requests, tokens and times since the start, as Prometheus reads them; and what there is at the moment."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence

from ..memory.system import process_memory

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")  # others are "other"
FIRST_TOKEN_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
TOKENS_PER_SECOND = (1, 2, 5, 10, 20, 40, 80, 160)


Samples = list[tuple[str, float]]  # the rest of a name with its labels, and a value


class Histogram:
    """How often a value was at most each of some bounds."""

    def __init__(self, bounds: Sequence[float]):
        self._bounds, self._counts, self._sum = bounds, [0] * (len(bounds) + 1), 0.0

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def samples(self) -> Iterator[tuple[str, float]]:
        total = 0
        for bound, count in zip((*self._bounds, "+Inf"), self._counts, strict=True):
            total += count
            yield f'_bucket{{le="{bound}"}}', total
        yield "_sum", self._sum
        yield "_count", total


class Metrics:
    """One server's counts; not for several threads."""

    def __init__(self) -> None:
        self.waiting = 0
        """Answers, and turns of the page, that have no event yet."""
        self.running = 0
        """Answers that have, and are not at their end."""
        self._requests: Counter[tuple[str, int]] = Counter()
        self._tokens: Counter[str] = Counter()
        self._first_token = Histogram(FIRST_TOKEN_SECONDS)
        self._speed = Histogram(TOKENS_PER_SECOND)

    def count_request(self, path: str, status: int) -> None:
        self._requests[path if path in PATHS else "other", status] += 1

    def count_answer(
        self, prompt: int, cached: int, sampled: int, first_token_seconds: float, tokens_per_second: float | None
    ) -> None:
        self._tokens.update(prompt=prompt, cached=cached, sampled=sampled)
        self._first_token.add(first_token_seconds)
        if tokens_per_second is not None:
            self._speed.add(tokens_per_second)

    def text(self, caches: int, resting: int) -> str:
        """`caches`: bytes of all prompt caches in memory; `resting`: how many of them nobody uses just now."""
        memory = process_memory()
        kinds = {"anonymous": memory.anonymous, "mapped": memory.mapped} if memory else {}
        kinds["caches"] = caches
        requests: Samples = [
            (f'{{path="{path}",status="{status}"}}', count) for (path, status), count in self._requests.items()
        ]
        tokens: Samples = [(f'{{kind="{kind}"}}', self._tokens[kind]) for kind in ("prompt", "cached", "sampled")]
        families: list[tuple[str, str, str, Samples]] = [
            ("requests_total", "counter", "Requests that have ended.", requests),
            ("tokens_total", "counter", "Tokens of answers; prompt includes cached.", tokens),
            ("answers_waiting", "gauge", "Answers that wait for their turn.", [("", self.waiting)]),
            ("answers_running", "gauge", "Answers that are being written.", [("", self.running)]),
            ("conversations_resting", "gauge", "Conversations whose prompt cache is kept in memory.", [("", resting)]),
            (
                "first_token_seconds",
                "histogram",
                "Seconds from a request to its first token.",
                list(self._first_token.samples()),
            ),
            (
                "tokens_per_second",
                "histogram",
                "Speed of an answer after its first token.",
                list(self._speed.samples()),
            ),
            (
                "memory_bytes",
                "gauge",
                "Memory of the process; mapped pages can be dropped by the system. caches: of prompt caches alone.",
                [(f'{{kind="{kind}"}}', count) for kind, count in kinds.items()],
            ),
        ]
        return "".join(
            f"# HELP gptoss_{name} {help_}\n# TYPE gptoss_{name} {kind}\n"
            + "".join(f"gptoss_{name}{suffix} {value}\n" for suffix, value in samples)
            for name, kind, help_, samples in families
        )
