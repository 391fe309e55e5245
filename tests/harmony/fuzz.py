"""Random streams of token ids through the parser, for as long as one likes:

    python tests/harmony/fuzz.py --minutes 10 [FOLDER ...]

FOLDERs hold a tokenizer.json; without one it is the embedded model's. Prints every kind of finding once, with the
shortest stream that shows it. `check` is what holds for any stream, and what `test_fuzz.py` tests too.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random

from gptoss_mlx.demo import CHECKPOINT
from gptoss_mlx.engine.special_tokens import CHANNEL, CONSTRAIN, MESSAGE, START, Special
from gptoss_mlx.engine.tokenizer import Tokenizer
from gptoss_mlx.harmony.headers import ROLES
from gptoss_mlx.harmony.messages import Message
from gptoss_mlx.harmony.parse import (
    STOPS,
    Content,
    Event,
    IdParser,
    Parser,
    Preamble,
    Reasoning,
    Stop,
    ToolCall,
    is_call,
    kind_of,
    tool_of,
)

FRAGMENTS = (
    "<|channel|>analysis<|message|>",
    "<|channel|>final<|message|>",
    "<|channel|>commentary to=functions.f <|constrain|>json<|message|>",
    "<|end|><|start|>assistant",
    "<|start|>assistant to=python<|channel|>analysis code<|message|>",
    "<|end|> 364 <|start|>assistant",
    "<|start|>bash<|channel|>commentary json<|message|>",
    "<|start|>functions.f to=assistant<|channel|>commentary<|message|>",
    "<|channel|>commentary? json to=functions.f<|message|>",
    "<|start|>assistant<|channel|>final the sum is 4",
    "<|call|>",
    "<|return|>",
)
WORDS = ("assistant", "user", "analysis", "commentary", "final", " to=functions.f", " to=", "to=user", " json", "code")
WORDS += (" 364 ", "Sure! ", "bash", " to=assistant", "functions.f", " ", "? ", ", ", '{"a": 1}', "to = functions.f")
HEADER_WORDS = {"assistant", "user", "analysis", "commentary", "final", "json", "code", "to=", "functions.f"}
A_CALL = re.compile(r"(?:^|\s)to=functions\.f(?!\w)")
CHARACTERS = "aé\u2028日👍\ufffd\u0000\u202e <|>\n\t"
UNKNOWN = (10**6, 2**31)  # ids behind the vocabulary, as padding rows of the logits are


def stream(random: Random, tokenizer: Tokenizer) -> list[int]:
    """Ids that look like Harmony now and then."""
    specials, names = [*tokenizer.specials], [*tokenizer.specials.values()]
    vocabulary = max(specials) + 1
    sources: list[Callable[[], list[int]]] = [
        lambda: tokenizer.encode_markup(random.choice(FRAGMENTS)),
        lambda: [random.choice(specials)],
        lambda: tokenizer.encode(random.choice(WORDS)),
        lambda: tokenizer.encode(random.choice(names)),
        lambda: tokenizer.encode("".join(random.choices(CHARACTERS, k=random.randrange(1, 9)))),
        lambda: random.choices(_bytes_of(tokenizer), k=random.randrange(1, 12)),
        lambda: [random.randrange(vocabulary)],
        lambda: [random.choice(UNKNOWN)],
    ]
    weights = [random.choice([0, 1, 5]) for _ in sources]
    ids: list[int] = []
    for source in random.choices(sources, weights if any(weights) else None, k=random.choice([3, 10, 40])):
        ids += source()
    return ids


def _bytes_of(tokenizer: Tokenizer) -> list[int]:
    """Ids that are a part of a character."""
    ids = [id_ for character in "é日👍" for id_ in tokenizer.encode(character)]
    return [*range(256), *ids]


def check(ids: list[int], tokenizer: Tokenizer) -> None:
    """Raises AssertionError, or whatever the parser raises, where something does not hold for a stream of ids."""
    pieces = pieces_of_ids(ids, tokenizer)
    events, messages = _check_pieces(pieces)
    parser = IdParser(tokenizer)
    by_id = [event for id_ in ids for event in parser.feed(id_)] + [*parser.finish()]
    assert joined(by_id) == joined(events), "ids give other events than their pieces"
    assert parser.parser.messages == messages, "ids give other messages than their pieces"
    _check_emitted(parser, tokenizer)
    for cut in (_merged(pieces), [part for piece in pieces for part in _letters(piece)]):
        other_events, other_messages = _check_pieces(cut)
        assert joined(other_events) == joined(events), "another cut of the text gives other events"
        assert other_messages == messages, "another cut of the text gives other messages"


def _check_emitted(parser: IdParser, tokenizer: Tokenizer) -> None:
    """The ids that a later prompt repeats say what the message says, and nothing else."""
    assert [emitted.message for emitted in parser.emitted] == parser.parser.messages, "not one of ids for each message"
    for emitted in parser.emitted:
        again = Parser()
        for piece in pieces_of_ids(emitted.ids or (), tokenizer):
            assert not isinstance(piece, Special) or piece in (CHANNEL, CONSTRAIN, MESSAGE), f"{piece} is repeated"
            list(again.feed(piece))
        list(again.finish())
        assert emitted.ids is None or again.messages == [emitted.message], "ids say something else than the message"


def check_text(ids: list[int], tokenizer: Tokenizer) -> None:
    """What arrives id by id is the text of all ids, up to how many U+FFFD stand for bytes that are none. Raises too."""
    plain = [id_ for id_ in ids if id_ not in tokenizer.specials]
    text, arriving = tokenizer.decode(plain), tokenizer.stream()
    arrived = "".join([arriving.feed(id_) for id_ in plain]) + arriving.flush()
    assert arrived.replace("\ufffd", "") == text.replace("\ufffd", ""), "characters are lost while text arrives"


def pieces_of_ids(ids: Iterable[int], tokenizer: Tokenizer) -> list[str]:
    """Special tokens, and the text between them as it arrives."""
    pieces, arriving = [], tokenizer.stream()
    for id_ in ids:
        if name := tokenizer.specials.get(id_):
            pieces += [arriving.flush(), Special(name)]
        else:
            pieces.append(arriving.feed(id_))
    return [piece for piece in [*pieces, arriving.flush()] if piece]


def _check_pieces(pieces: list[str]) -> tuple[list[Event], list[Message]]:
    """Feeds the parser, and follows by simpler means which text belongs to headers and which to messages."""
    parser, events = Parser(), []
    header, body, in_body = "", "", False
    for piece in [*pieces, None]:
        seen = len(parser.messages)
        events += parser.finish() if piece is None else parser.feed(piece)
        assert len(parser.messages) <= seen + 1, "one piece ends two messages"
        if isinstance(piece, str) and not isinstance(piece, Special):
            header, body = (header, body + piece) if in_body else (header + piece, body)
        elif piece in (None, START, *STOPS) or (piece == CHANNEL and in_body):
            _check_message(parser.messages[seen:], header, body, in_body)
            header, body, in_body = "", "", False
        elif not in_body:
            header += " " * (piece in (CHANNEL, CONSTRAIN, MESSAGE))
            _check_message(parser.messages[seen:], header, "", False)
            if piece == MESSAGE:
                in_body = True
                _check_call(parser.message, header)
        else:
            assert len(parser.messages) == seen, f"{piece} ends a message"
    assert [event for event in events if isinstance(event, Stop)] == events[-1:], "not one Stop, at the end"
    assert joined(events[:-1]) == joined(_events_of(parser.messages)), "events and messages differ"
    _check_headers_needed(pieces, parser.messages)
    _check_calls(pieces, parser.messages)
    return events, parser.messages


def _check_message(messages: list[Message], header: str, body: str, in_body: bool) -> None:
    if in_body:
        assert "".join(message.content for message in messages) == body, "a message's text is not what was in it"
    for message in messages:
        assert message.role == "assistant" or message.role in header, "a role is invented"
        assert message.recipient is None or message.recipient.removeprefix("functions.") in header, "a tool is invented"
        known = () if in_body else ("analysis", "commentary")  # what stands for a header that was none
        assert message.channel is None or message.channel in known or message.channel in header, "a channel is invented"
        # What is left over of a header may come from several places of it.
        for text in (message.content_type or "", "" if in_body else message.content):
            letters = iter(header)
            assert all(letter in letters for letter in text), "text of a header is invented"
        words = set(message.content.split())
        assert in_body or not words or words - HEADER_WORDS, "a header's words are a text"


def _check_call(message: Message, header: str) -> None:
    if A_CALL.search(header) and message.role == "assistant":
        assert message.recipient is not None, "a call in a complete header is lost"


def _check_headers_needed(pieces: list[str], messages: list[Message]) -> None:
    """What may be told where headers are needed: the texts that arrive while a complete header says so."""
    parser, told, arrived = Parser(headers_needed=(Content, Preamble)), "", ""
    for piece in [*pieces, None]:
        for event in parser.finish() if piece is None else parser.feed(piece):
            told += event.text if isinstance(event, Content | Preamble) else ""
        if piece is not None and not isinstance(piece, Special) and parser.message:
            arrived += piece if kind_of(parser.message) in (Content, Preamble) else ""
    assert told == arrived, "a text is told that has no complete header"
    assert all(message in messages for message in parser.messages), "needing headers gives other messages"
    said = [message.content for message in parser.messages if kind_of(message) in (Content, Preamble)]
    assert "".join(said) == told, "a text is kept that was not told"


def _check_calls(pieces: list[str], messages: list[Message]) -> None:
    """What is told of calls where they need headers: those of complete ones; and where there must be none."""
    headed, without = Parser(headers_needed=(ToolCall,)), Parser(calls=False)
    for piece in [*pieces, None]:
        before = headed.message
        told = list(headed.finish() if piece is None else headed.feed(piece))
        announced = before is not None and tool_of(before) is not None
        assert announced or not any(isinstance(event, ToolCall) for event in told), "a call has no complete header"
        told = list(without.finish() if piece is None else without.feed(piece))
        assert not any(isinstance(event, ToolCall) for event in told), "a call is told that must not be"
        message = without.message
        assert without.invented or message is None or tool_of(message) is None, "a call is not noticed"
    said = [message for message in messages if message.role in ROLES and not is_call(message)]
    assert [message for message in without.messages if message.role in ROLES] == said, "other messages are lost"


def _events_of(messages: Iterable[Message]) -> Iterable[Event]:
    for message in messages:
        if is_call(message):
            yield ToolCall(message.recipient.removeprefix("functions."), message.content)
        elif message.content and message.role in ROLES:
            kinds = {"final": Content, None: Content, "commentary": Preamble} if message.role == "assistant" else {}
            yield kinds.get(message.channel, Reasoning)(message.content)


def joined(events: Iterable[Event]) -> list[Event]:
    """Events with neighbouring texts of one kind made one."""
    out: list[Event] = []
    for event in events:
        if out and type(event) is type(out[-1]) and hasattr(event, "text"):
            out[-1] = type(event)(out[-1].text + event.text)
        else:
            out.append(event)
    return out


def _merged(pieces: Iterable[str]) -> list[str]:
    out: list[str] = []
    for piece in pieces:
        if out and not isinstance(piece, Special) and not isinstance(out[-1], Special):
            out[-1] += piece
        else:
            out.append(piece)
    return out


def _letters(piece: str) -> Iterable[str]:
    return [piece] if isinstance(piece, Special) else piece


def finding(ids: list[int], tokenizer: Tokenizer) -> str | None:
    """What does not hold for a stream, in a few words."""
    try:
        check(ids, tokenizer)
        check_text(ids, tokenizer)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return None


def shortened(ids: list[int], fails: Callable[[list[int]], bool]) -> list[int]:
    """A stream that fails too, from which no part can be left out."""
    size = len(ids)
    while size := size // 2:
        at = 0
        while at < len(ids):
            shorter = ids[:at] + ids[at + size :]
            if fails(shorter):
                ids = shorter
            else:
                at += size
    return ids


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--minutes", type=float, default=1)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("folders", type=Path, nargs="*", default=[CHECKPOINT])
    given = arguments.parse_args()
    tokenizers = [Tokenizer.load(folder) for folder in given.folders]
    found: dict[str, list[int]] = {}
    seed, end = given.seed, time.monotonic() + 60 * given.minutes
    while time.monotonic() < end:
        tokenizer = tokenizers[seed % len(tokenizers)]
        ids = stream(Random(seed), tokenizer)
        if (what := finding(ids, tokenizer)) and what not in found:
            found[what] = shortened(ids, lambda ids, what=what, by=tokenizer: finding(ids, by) == what)
            print(f"seed {seed}: {what}\n    {found[what]}\n    {tokenizer.decode(found[what])!r}", flush=True)
        seed += 1
    print(f"{seed - given.seed:,} streams, {len(found)} kinds of findings")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
