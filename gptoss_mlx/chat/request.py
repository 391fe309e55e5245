"""One answer to a conversation that somebody else keeps, and sends whole each time: what is asked, and the events."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ..engine.sampling import Sampling
from ..harmony.messages import Conversation
from ..harmony.parse import Content, Preamble, Reasoning
from .turn import Prefill, Thought
from .turn import TokenLogprobs as TokenLogprobs  # for those who read the events


@dataclass(frozen=True)
class AnswerRequest:
    """A conversation, and how it is to be answered."""

    conversation: Conversation
    """With the tools that the model may call; their calls are for the client to run."""
    sampling: Sampling = field(default_factory=Sampling)
    reasons: bool = True
    """False: straight to the answer, whatever the conversation's effort."""
    max_tokens: int | None = None
    """Sampled tokens, reasoning included; None: as many as the context has room for."""
    stop: tuple[str, ...] = ()
    """Texts before which the answer ends, wherever they begin in it."""
    tool_choice: Literal["auto", "none", "required"] = "auto"
    only_tool: str | None = None
    """With "required": the one tool that has to be called."""
    strict_tools: frozenset[str] = frozenset()
    """Tools whose arguments have to follow their schema."""
    logprobs: int | None = None
    """How many of the likeliest tokens are reported beside each token of the answer; None reports nothing."""
    cache_key: str | None = None
    """Requests of one conversation have the same, as their client says."""


@dataclass(frozen=True)
class Called:
    """A complete call of a tool; a client returns its result under `id`."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class AnswerStats:
    """The last event: how the answer ended, and its tokens."""

    reason: Literal["stop", "length", "tool_calls"]
    prompt: int
    """Tokens of the prompt."""
    cached: int
    """Of these, those that were not prefilled, because they were in the KV cache."""
    sampled: int
    """All tokens that were sampled."""
    reasoning: int
    """Of these, those of reasoning."""
    stopped_by: str | None = None
    """The one of `AnswerRequest.stop` that ended it."""
    repeated: str | None = None
    """What was repeated over and over, in words, where the answer was ended for that: the reason is "length" then."""


AnswerEvent = Prefill | Reasoning | Thought | Preamble | Content | TokenLogprobs | Called | AnswerStats
