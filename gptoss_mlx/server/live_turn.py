"""A turn while it runs, as the page shows it: pieces in their order, each with the number of its last change.

A page that was away, or is slow, gets the pieces that have changed since the number that it saw last: nothing is kept
for it but the answer. The end of a text is rendered again as it grows, as often as that stays cheap.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from concurrent.futures import Future
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any

from ..chat.turn import Asked, Dropped, Prefill, Thought, ToolResult, TurnStats
from ..chat.visible import with_all_visible
from ..errors import GptOssError
from ..harmony.parse import Content, Preamble, Reasoning, ToolCall
from .markup import BlockStream

Piece = dict[str, Any]

MIN_PAUSE = 0.05  # seconds between two renderings
PAUSE_PER_RENDERING = 8  # times what a rendering takes, so that a long block costs a ninth of a core
KEEP_ALIVE = 15.0  # seconds
MAX_OUTPUT = 20_000  # characters of a tool's result that are shown

STOPPED = "Stopped. Continue resumes the answer."
FULL = "Stopped: the context is full. Undo removes the last question."
MAX_TOKENS = "Stopped at the maximum of tokens. Continue resumes the answer."
NO_ANSWER = "The model stopped before answering. Continue asks for an answer."

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Named:
    """The conversation has this name now."""

    name: str


@dataclass
class Section:
    """A text of the answer while it grows: its blocks follow it as pieces, of which the last one still changes."""

    at: int
    tail: Piece
    blocks: BlockStream = field(default_factory=BlockStream)
    added: list[str] = field(default_factory=list)


class LiveTurn:
    """All methods are for the event loop's thread."""

    def __init__(self, context: int) -> None:
        self.id = secrets.token_urlsafe(9)
        self.name: str | None = None
        self.approval: Future[str] | None = None
        """The answer of a person who is asked about a call: "yes", "always" or "no"."""
        self.ended = False
        self._context = context
        self._pieces: list[Piece] = []
        self._seq = 0
        self._changed = asyncio.Event()
        self._section: Section | None = None
        self._last: dict[str, Piece] = {}  # kind -> its last piece
        self._pause = MIN_PAUSE
        self._rendering: asyncio.TimerHandle | None = None
        self._running: asyncio.Task[None] | None = None

    def begin(self, events: AsyncGenerator[Any, None], release: Any) -> None:
        """Follow the events to their end; `release` is awaited after it."""
        self._running = asyncio.create_task(self._follow(events, release))

    async def stop(self) -> None:
        """What has arrived stays."""
        if self._running and not self.ended:
            self._running.cancel()
            with suppress(asyncio.CancelledError):
                await self._running

    async def updates(self, since: int) -> AsyncIterator[tuple[int, Sequence[Piece]]]:
        """The pieces that have changed after the number `since`, and the number of the last change, again and again;
        none where nothing changes for KEEP_ALIVE seconds."""
        while True:
            changed = [piece for piece in self._pieces if piece["seq"] > since]
            since = self._seq
            if changed:
                yield since, changed
            elif self.ended:
                return
            else:
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), KEEP_ALIVE)
                    continue
                yield since, ()

    async def _follow(self, events: AsyncGenerator[Any, None], release: Any) -> None:
        try:
            async with aclosing(events):
                async for event in events:
                    self._take(event)
        except asyncio.CancelledError:
            self._note(STOPPED)
        except GptOssError as error:
            self._note(str(error), is_error=True)
        except Exception as error:
            log.error("a turn of the page ended in an error", exc_info=error)
            self._note("The server made an error; its log says more.", is_error=True)
        await self._end(release)

    async def _end(self, release: Any) -> None:
        self._close_section()
        if trouble := await release():
            self._note(f"This conversation is not saved: {trouble}", is_error=True)
        self.ended = True
        self._add("end", name=self.name)

    def _take(self, event: Any) -> None:
        match event:
            case Prefill(done, total):
                self._put("prefill", done=done, total=total)
            case Reasoning(text, begins):
                self._write("reasoning", text, begins)
            case Content(text, begins):
                self._write("answer", text, begins)
            case Preamble(text, begins):
                self._write("preamble", text, begins)
            case Thought(tokens, seconds):
                self._change(self._last["reasoning"], tokens=tokens, seconds=round(seconds, 1))
            case ToolCall(name, arguments):
                self._close_section()
                self._add("call", name=with_all_visible(name), text=with_all_visible(arguments), state="running")
            case Asked(name, preview):
                self._change(self._call(), state="asking", text=with_all_visible(preview))
            case ToolResult(_, output):
                cut = "\n..." if len(output) > MAX_OUTPUT else ""
                self._change(self._call(), state="done", output=with_all_visible(output[:MAX_OUTPUT]) + cut)
            case Dropped(messages):
                self._note(f"The context is full: the {messages} oldest messages were dropped.")
            case Named(name):
                self.name = name
                self._put("name", name=name)
            case TurnStats():
                self._close_section()
                self._add_stats(event)

    def _call(self) -> Piece:
        """The first call without a result."""
        return next(each for each in self._pieces if each["kind"] == "call" and each["state"] != "done")

    def answered(self) -> None:
        """The person has decided."""
        self._change(self._call(), state="running")

    def _add_stats(self, stats: TurnStats) -> None:
        self._add(
            "stats",
            tokens_per_second=round(stats.tokens_per_second, 1),
            first_token_seconds=round(stats.first_token_seconds, 2),
            prefilled=stats.prefilled,
            decoded=stats.decoded,
            used=stats.context_used,
            context=self._context,
            finished=stats.finished,
        )
        if stats.repeated:
            self._note(f"Stopped: the model was repeating {stats.repeated}. Continue resumes the answer.")
        elif not stats.finished:
            is_full = stats.context_used >= self._context - 1
            self._note(FULL if is_full else MAX_TOKENS if "answer" in self._last else NO_ANSWER)

    def _note(self, text: str, *, is_error: bool = False) -> None:
        self._close_section()
        self._add("note", text=text, error=is_error)

    def _write(self, kind: str, text: str, begins: bool) -> None:
        if begins or self._section is None or self._last.get(kind, {}).get("at") != self._section.at:
            self._close_section()
            at = self._add(kind)["at"]
            self._section = Section(at, self._add("block", section=at, html=""))
        self._section.added.append(text)
        if self._rendering is None:
            self._rendering = asyncio.get_running_loop().call_later(self._pause, self._render)

    def _render(self) -> None:
        """Render what has arrived."""
        self._rendering, section = None, self._section
        if section is None or not section.added:
            return
        began = time.monotonic()
        section.blocks.add("".join(section.added))
        section.added.clear()
        settled, tail = map("".join, section.blocks.render())
        self._show(section, settled, tail)
        self._pause = max(MIN_PAUSE, PAUSE_PER_RENDERING * (time.monotonic() - began))

    def _show(self, section: Section, settled: str, tail: str) -> None:
        if settled:
            self._change(section.tail, html=settled)
            section.tail = self._add("block", section=section.at, html=tail)
        else:
            self._change(section.tail, html=tail)

    def _close_section(self) -> None:
        """What follows is not part of this text: the rest of it is shown now."""
        if self._rendering:
            self._rendering.cancel()
        self._render()
        self._section = None

    def _add(self, kind: str, **content: Any) -> Piece:
        piece = {"at": len(self._pieces), "kind": kind, **content}
        self._pieces.append(piece)
        self._last[kind] = piece
        self._change(piece)
        return piece

    def _put(self, kind: str, **content: Any) -> None:
        """Change the one piece of a kind, or add it."""
        if kind in self._last:
            self._change(self._last[kind], **content)
        else:
            self._add(kind, **content)

    def _change(self, piece: Piece, **content: Any) -> None:
        self._seq += 1
        piece.update(content, seq=self._seq)
        self._changed.set()
        self._changed = asyncio.Event()
