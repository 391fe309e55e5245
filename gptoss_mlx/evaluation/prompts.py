"""Prompts with the answers that are right: which of them a model gives, greedy, to the letter.

A prompt is a line of JSON: {"prompt": TEXT, or a conversation as `gptoss-mlx harmony render` takes it} or {"rendered":
what that prints}, with "answer": TEXT, or {"name": ..., "arguments": {...}} for a call; and "part", where there are
parts. An answer is right if it is the text, but for white space around it, and the model ends it by itself; a call, if
its name and its parsed arguments are the same and it is the only one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..engine.generate import Model
from ..engine.sampling import Sampling
from ..engine.special_tokens import START
from ..engine.tokenizer import Tokenizer
from ..errors import GptOssError
from ..harmony.messages import EFFORTS, FUNCTIONS, Conversation, Message, conversation_from_json
from ..harmony.openings import without_reasoning
from ..harmony.parse import Content, IdParser, is_call, kind_of
from ..harmony.render import encode, render
from ..untrusted import parse_json
from .run import Item, OnRead

GREEDY = Sampling(temperature=0)
NORMAL_95 = 1.959964  # standard deviations on either side hold 95 % of a normal distribution
FIELDS = {"prompt", "rendered", "answer", "part"}


@dataclass(frozen=True)
class Call:
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Prompt:
    name: str
    """Where it comes from, such as "line 3"."""
    ids: list[int]
    answer: str | Call
    part: str | None = None


@dataclass(frozen=True)
class Reply:
    """The tokens that a model emitted after one prompt, parsed."""

    answer: str
    calls: list[Call | None]
    """None for one whose arguments are not JSON."""
    stop: str
    """As `harmony.parse.Stop` has it."""


@dataclass(frozen=True)
class Asking:
    """How a prompt is asked that does not say so itself."""

    reasoning: str = "medium"
    """An effort of Harmony's, or "none": straight to the answer."""
    instructions: str | None = None

    @property
    def effort(self) -> str:
        """The effort of a conversation that names none itself."""
        return self.reasoning if self.reasoning in EFFORTS else EFFORTS[0]

    def pieces(self, conversation: Conversation) -> list[str]:
        """The rendered prompt; without a date, so that it is the same every day."""
        if self.instructions is not None and not any(each.role == "developer" for each in conversation.messages[:1]):
            messages = Message("developer", self.instructions), *conversation.messages
            conversation = replace(conversation, messages=messages)
        if self.reasoning != "none":
            return list(render(conversation))
        can_call = bool(conversation.tools or conversation.builtin_tools)
        return [*render(conversation), *without_reasoning(can_call=can_call)]


@dataclass(frozen=True)
class Share:
    """How many of some prompts were answered right, with the Wilson interval of 95 % of the share."""

    name: str | None
    right: int
    total: int
    threshold: float | None = None
    """The share that is required."""

    @property
    def share(self) -> float:
        return self.right / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """E. B. Wilson, Journal of the American Statistical Association 22 (1927), 209-212."""
        n, p, z = self.total, self.share, NORMAL_95
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(middle - half, 0.0), min(middle + half, 1.0)

    @property
    def missed(self) -> bool:
        return self.threshold is not None and self.share < self.threshold

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"share": self.share, "interval": list(self.interval)}


@dataclass(frozen=True)
class Wrong:
    """A prompt that was not answered right."""

    name: str
    part: str | None
    expected: str | dict[str, Any]
    reply: dict[str, Any]


@dataclass(frozen=True)
class PromptResults:
    prompts: int
    """Prompts that there are."""
    all: Share
    parts: list[Share]
    wrong: list[Wrong]

    def as_dict(self) -> dict[str, Any]:
        shares = {"all": self.all.as_dict(), "parts": [part.as_dict() for part in self.parts]}
        return asdict(self) | shares


class Prompts:
    """Prompts of one source, with the share of each part that has to be answered right."""

    def __init__(
        self,
        name: str,
        prompts: Sequence[Prompt],
        tokenizer: Tokenizer,
        *,
        max_tokens: int,
        thresholds: Mapping[str, float] | None = None,
    ):
        self.name, self.prompts, self._max_tokens = name, prompts, max_tokens
        self._tokenizer, self._thresholds = tokenizer, thresholds or {}
        self.items = [Item(f"{name}, {prompt.name}", len(prompt.ids)) for prompt in prompts]
        self.key = [[asdict(prompt) for prompt in prompts], max_tokens]
        self.context = max(len(prompt.ids) for prompt in prompts) + max_tokens

    def measure(self, model: Model, index: int, on_read: OnRead) -> dict[str, Any]:
        """The reply, and whether it is right."""
        prompt = self.prompts[index]
        reply = reply_to(model, self._tokenizer, prompt.ids, self._max_tokens, on_read)
        return {"right": is_right(reply, prompt.answer), "reply": asdict(reply)}

    def results(self, values: dict[int, Any]) -> PromptResults | None:
        """Results over the prompts that were asked; None where there is none."""
        if not values:
            return None
        right = {index: values[index]["right"] for index in sorted(values)}
        parts: dict[str, list[bool]] = {}
        for index, ok in right.items():
            if (part := self.prompts[index].part) is not None:
                parts.setdefault(part, []).append(ok)
        return PromptResults(
            prompts=len(self.prompts),
            all=Share(None, sum(right.values()), len(right)),
            parts=[Share(part, sum(oks), len(oks), self._thresholds.get(part)) for part, oks in parts.items()],
            wrong=[self._wrong(index, values[index]["reply"]) for index, ok in right.items() if not ok],
        )

    def _wrong(self, index: int, reply: dict[str, Any]) -> Wrong:
        prompt = self.prompts[index]
        expected = prompt.answer if isinstance(prompt.answer, str) else asdict(prompt.answer)
        return Wrong(prompt.name, prompt.part, expected, reply)


def reply_to(
    model: Model,
    tokenizer: Tokenizer,
    ids: Sequence[int],
    max_tokens: int,
    on_read: OnRead = lambda count: None,
) -> Reply:
    """The greedy reply to a prompt until the model stops by itself, with what the prompt has begun for it."""
    parser = IdParser(tokenizer)
    begun = len(ids) - 1 - list(reversed(ids)).index(tokenizer.special(START))
    for id_ in ids[begun:]:
        list(parser.feed(id_))
    emitted = model.generate(ids, sampling=GREEDY, max_tokens=max_tokens, on_prefill=lambda done, total: on_read(done))
    for id_ in emitted:
        list(parser.feed(id_))
        on_read(len(ids))
        if parser.parser.invented:
            break
    list(parser.finish())
    messages = parser.parser.messages
    return Reply(
        "".join(message.content for message in messages if kind_of(message) is Content),
        [_call(message) for message in messages if is_call(message)],
        parser.parser.stop,
    )


def _call(message: Message) -> Call | None:
    try:
        return Call((message.recipient or "").removeprefix(FUNCTIONS), parse_json(message.content.encode()))
    except ValueError:
        return None


def is_right(reply: Reply, answer: str | Call) -> bool:
    if isinstance(answer, str):
        return (reply.answer.strip(), reply.stop) == (answer.strip(), "return")
    return (_written(reply.calls), reply.stop) == (_written([answer]), "call")


def _written(calls: list[Call | None]) -> str:
    """To compare calls as JSON; in Python, 1 and True are equal."""
    return json.dumps([call and asdict(call) for call in calls], sort_keys=True)


def read_prompts(lines: Iterable[bytes], source: str, tokenizer: Tokenizer, asking: Asking) -> list[Prompt]:
    """The prompts of a file, a line each. Raises GptOssError with the number of the line that is wrong."""
    prompts = []
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                prompts.append(_prompt(f"line {number}", parse_json(line), tokenizer, asking))
        except (ValueError, GptOssError) as error:
            raise GptOssError(f"{source}, line {number}: {error}") from None
    if not prompts:
        raise GptOssError(f"{source} has no prompts: it takes a JSON object on each line")
    return prompts


def _prompt(name: str, data: Any, tokenizer: Tokenizer, asking: Asking) -> Prompt:
    """Raises GptOssError."""
    if not isinstance(data, dict) or ("prompt" in data) == ("rendered" in data) or "answer" not in data:
        raise GptOssError('a prompt is a JSON object with "prompt" or "rendered", and "answer"')
    if unknown := sorted(data.keys() - FIELDS):
        raise GptOssError(f"a prompt has no field {unknown[0]!r}")
    part = data.get("part")
    if part is not None and not isinstance(part, str):
        raise GptOssError('"part" is not text')
    if "rendered" in data:
        ids = _rendered_ids(data["rendered"], tokenizer)
    else:
        ids = encode(asking.pieces(_conversation(data["prompt"], asking)), tokenizer)
    return Prompt(name, ids, _answer(data["answer"]), part)


def _rendered_ids(text: Any, tokenizer: Tokenizer) -> list[int]:
    if not isinstance(text, str):
        raise GptOssError('"rendered" is not text')
    ids = tokenizer.encode_markup(text)
    if tokenizer.special(START) not in ids:
        raise GptOssError('"rendered" has no <|start|>: it takes what `gptoss-mlx harmony render` prints')
    return ids


def _conversation(prompt: Any, asking: Asking) -> Conversation:
    """A text becomes a question; a conversation that names no effort gets that of `asking`."""
    if isinstance(prompt, str):
        return Conversation((Message("user", prompt),), reasoning_effort=asking.effort)
    if isinstance(prompt, dict):
        prompt = {"reasoning_effort": asking.effort} | prompt
    return conversation_from_json(prompt)


def _answer(data: Any) -> str | Call:
    if isinstance(data, str):
        return data
    if isinstance(data, dict) and data.keys() == {"name", "arguments"}:
        name, arguments = data["name"], data["arguments"]
        if isinstance(name, str) and isinstance(arguments, dict):
            return Call(name.removeprefix(FUNCTIONS), arguments)
    raise GptOssError('"answer" is neither text nor a call, {"name": TEXT, "arguments": {...}}')
