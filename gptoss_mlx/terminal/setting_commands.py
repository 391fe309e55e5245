"""Slash commands for how the chat answers: reasoning, model, sampling, instructions."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..chat.session import EFFORTS, Session
from ..errors import GptOssError
from ..model.model_store import converted, resolve
from .slash_command import RE_READS, Command, WrongUsage

if TYPE_CHECKING:
    from .controller import Chat


@dataclass(frozen=True)
class Setting:
    read: Callable[[str], float]
    takes: str
    """Values that it takes, in words."""
    without: str | None = None
    """What `none` means; None where there has to be a value."""


SETTINGS = {
    "temperature": Setting(float, "a number of 0 or more; 0 always takes the likeliest token"),
    "top-p": Setting(float, "a number above 0 and at most 1"),
    "top-k": Setting(int, "a whole number of 0 or more; 0 keeps all tokens"),
    "min-p": Setting(float, "a number from 0 to 1"),
    "seed": Setting(int, "a whole number from 0 to 2^64 - 1, or none", "another one each time"),
    "max-tokens": Setting(int, "a whole number of 1 or more, or none", "until the context is full"),
}


def _set(chat: Chat, text: str) -> None:
    name, *values = text.split() or [""]
    name = name.lower().replace("_", "-")
    if len(values) > 1:
        raise WrongUsage
    if name and name not in SETTINGS:
        raise GptOssError(f"there is no setting {name!r}: {', '.join(SETTINGS)} can be set")
    for value in values:
        _apply(chat.session, name, value)
    names = [name] if name else list(SETTINGS)
    width = max(map(len, names))
    chat.screen.note("\n".join(f"{each:{width}}  {_shown(chat.session, each)}" for each in names))


def _apply(session: Session, name: str, text: str) -> None:
    """From the next answer on. Raises GptOssError for a value that does not fit."""
    setting = SETTINGS[name]
    try:
        value: Any = None if setting.without and text == "none" else setting.read(text)
        if name != "max-tokens":
            session.sampling = replace(session.sampling, **{name.replace("-", "_"): value})
        elif value is None or value >= 1:
            session.max_tokens = value
        else:
            raise ValueError
    except (ValueError, GptOssError):
        raise GptOssError(f"{name} takes {setting.takes}: not {text!r}") from None


def _shown(session: Session, name: str) -> str:
    value = session.max_tokens if name == "max-tokens" else getattr(session.sampling, name.replace("-", "_"))
    return str(SETTINGS[name].without) if value is None else f"{value}"


def _reasoning(chat: Chat, what: str) -> None:
    session, screen = chat.session, chat.screen
    if what == "show":
        screen.show_reasoning = True
        screen.note("".join(chat.reasoning) or "reasoning will be shown in full")
    elif what == "hide":
        screen.show_reasoning = None
        screen.note("reasoning will be folded to one line")
    elif what in EFFORTS:
        # "none" is "low" with an empty analysis written for the model: the prompt says the same.
        is_new = {session.reasoning_effort, what} - {"none", "low"} and what != session.reasoning_effort
        session.set_reasoning_effort(what)
        screen.note(f"reasoning effort: {what}" + (RE_READS if is_new and session.messages else ""))
    elif what:
        raise WrongUsage
    else:
        screen.note(f"reasoning effort: {session.reasoning_effort}")


def _model(chat: Chat, name: str) -> None:
    before = chat.session.model.path
    if not name:
        context = chat.session.model.context
        chat.screen.note(f"{before.name} in {before}, context {context:,} tokens")
        return
    load = chat.load
    if load is None:
        raise GptOssError("this chat cannot load another model")
    folder, transcript = resolve(name), chat.session.transcript
    sampling, max_tokens = chat.session.sampling, chat.session.max_tokens

    def continue_with(path: Path) -> None:
        session = load(str(path))
        session.restore(transcript)
        session.sampling, session.max_tokens = sampling, max_tokens
        chat.use(session)
        chat.over = False

    chat.session.close()
    del chat.session  # whose memory is needed
    chat.over = True  # unless a model is loaded
    try:
        continue_with(folder)
    except GptOssError:
        continue_with(before)
        raise
    chat.screen.note(f"switched to {folder.name}{RE_READS}")


def _system(chat: Chat, text: str) -> None:
    if not text:
        chat.screen.note(chat.session.instructions or "no instructions")
        return
    chat.session.instructions = None if text == "none" else text
    chat.session.reset()
    chat.leave()
    with_or_without = "with these" if chat.session.instructions else "without"
    chat.screen.note(f"new conversation {with_or_without} instructions")


def _preset(chat: Chat, text: str) -> None:
    if chat.presets is None:
        raise GptOssError("this chat has no presets")
    if not text:
        held = chat.presets.name
        names = [f"{name} (holds)" if name == held else name for name in chat.presets.names()]
        chat.screen.note("\n".join(names) or "there are no presets")
        return
    try:
        name, *words = shlex.split(text)
        values = dict(word.split("=", 1) for word in words)
    except ValueError:
        raise WrongUsage from None
    session = chat.presets.switch(None if name == "none" else name, values, chat.session.model)
    chat.leave()
    chat.use(session)
    chat.screen.note("new conversation " + ("without a preset" if name == "none" else f"with the preset {name}"))


def _presets(chat: Chat) -> Iterable[str]:
    return (*chat.presets.names(), "none") if chat.presets else ()


SETTING_COMMANDS = (
    Command(
        f"/reasoning [{'|'.join(EFFORTS)}|show|hide]",
        "set the reasoning effort, or show or hide reasoning",
        _reasoning,
        changes=True,
        values=lambda _: (*EFFORTS, "show", "hide"),
    ),
    Command("/set [NAME VALUE]", "show or change temperature, seed, max-tokens ...", _set, values=lambda _: SETTINGS),
    Command(
        "/model [NAME]",
        "show which model this is, or switch to another",
        _model,
        changes=True,
        values=lambda _: converted(),
    ),
    Command(
        "/preset [NAME [KEY=VALUE ...]|none]",
        "list the presets, or start again with another",
        _preset,
        destroys=True,
        values=_presets,
    ),
    Command("/system [TEXT|none]", "show the instructions, or start again with others", _system, destroys=True),
)
