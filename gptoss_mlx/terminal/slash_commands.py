"""What begins with a slash: a table of commands, and what each does to a chat.

Everything that a command says goes to the chat's screen as a note; what goes wrong is a GptOssError.
"""

from __future__ import annotations

import difflib
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..chat.session import EFFORTS
from ..chat.transcript import Transcript
from ..errors import GptOssError
from ..files import replace_file
from ..harmony.messages import FUNCTIONS
from ..harmony.parse import Content, kind_of
from ..memory.system import size_text
from ..model.model_store import resolve

if TYPE_CHECKING:
    from .controller import Chat

CLIPBOARD_PROGRAMS = (("pbcopy",), ("wl-copy",), ("xclip", "-selection", "clipboard"))
CODE_BLOCK = re.compile(r"^ {0,3}(`{3,}|~{3,})[^\n]*\n(.*?)(?:^ {0,3}\1|\Z)", re.DOTALL | re.MULTILINE)
COMMAND_LINE = re.compile(r"/[A-Za-z]+([ \t].*)?")
NEAR = 0.7  # how alike a command has to be to what was typed, to be what was meant
NOTHING_YET = "nothing has been said yet"
KEYS = """\
Ctrl-C stops an answer and keeps what there is of it; Ctrl-D leaves. A line that ends in \\ goes on
in the next one, and so does Alt-Enter; between two lines of \"\"\" there may be any number of lines.
//word sends /word, and @file adds a file. !command asks first, then sends what the command prints;
answer no to send the line itself. Several lines are always a message."""


@dataclass(frozen=True)
class Command:
    usage: str
    """Its name, and what may follow: in brackets what may be left out."""
    help: str
    run: Callable[[Chat, str], None]
    changes: bool = False
    """Whether the conversation or its settings are others afterwards, and have to be kept; answers are anyway."""

    @property
    def name(self) -> str:
        return self.usage.split()[0]

    def takes(self, rest: str) -> bool:
        argument = self.usage.removeprefix(self.name).strip()
        return bool(argument) if rest else not argument or argument.startswith("[")


class WrongUsage(Exception):
    """A command cannot mean that."""


def is_command(text: str) -> bool:
    """Whether a text that was typed is a command, of whatever name, and no message: paths and pasted lines are none."""
    return COMMAND_LINE.fullmatch(text.rstrip("\n")) is not None


def run_line(chat: Chat, line: str) -> None:
    """Run the command that a line names. Raises GptOssError."""
    name, *rest = line.strip().split(maxsplit=1)
    command = COMMANDS.get(name.lower())
    if command is None:
        near = difflib.get_close_matches(name.lower(), COMMANDS, n=1, cutoff=NEAR)
        chat.screen.note(f"there is no command {name}: " + (f"is it {near[0]}?" if near else "/help lists them"))
        return
    argument = "".join(rest).strip()
    try:
        if not command.takes(argument):
            raise WrongUsage
        command.run(chat, argument)
    except WrongUsage:
        chat.screen.note(f"usage: {command.usage}")
    else:
        if command.changes:
            chat.keep(kv=False)


def _help(chat: Chat, _: str) -> None:
    width = max(len(command.usage) for command in COMMANDS.values()) + 2
    lines = [f"{command.usage:{width}}{command.help}" for command in COMMANDS.values()]
    chat.screen.note("\n".join([*lines, KEYS]))


def _reset(chat: Chat, _: str) -> None:
    chat.session.reset()
    chat.leave()
    chat.screen.note("new conversation")


def _system(chat: Chat, text: str) -> None:
    if not text:
        chat.screen.note(chat.session.instructions or "no instructions")
        return
    chat.session.instructions = None if text == "none" else text
    chat.session.reset()
    chat.leave()
    with_or_without = "with these" if chat.session.instructions else "without"
    chat.screen.note(f"new conversation {with_or_without} instructions")


def _undo(chat: Chat, _: str) -> None:
    question = " ".join(chat.session.undo().split())
    chat.screen.note(f"taken back: {question if len(question) <= 70 else question[:66] + ' ...'}")


def _retry(chat: Chat, _: str) -> None:
    chat.answer(chat.session.retry)


def _edit(chat: Chat, _: str) -> None:
    question = chat.session.undo()
    chat.draft = chat.typed.get(question, question)


def _continue(chat: Chat, _: str) -> None:
    messages = chat.session.messages
    is_open = messages and messages[-1].role == "assistant" and kind_of(messages[-1]) is Content
    chat.answer(chat.session.resume, messages[-1].content if is_open else "")


def _copy(chat: Chat, what: str) -> None:
    if what not in ("", "code"):
        raise WrongUsage
    text = _last_answer(chat)
    if what == "code":
        blocks = CODE_BLOCK.findall(text)
        if not blocks:
            raise GptOssError("there is no code block in the last answer")
        text = blocks[-1][1]
    size = f"{len(text):,} characters"
    programs = [program[0] for program in CLIPBOARD_PROGRAMS if _feed(program, text)]
    done = [f"copied {size} through {' and '.join(programs)}"] if programs else []
    if chat.screen.clipboard(text):  # whether it did, no terminal tells
        done.append(f"asked the terminal to copy {'them' if programs else size}")
    if not done:
        raise GptOssError("there is no clipboard here: neither a terminal that has one, nor pbcopy, wl-copy or xclip")
    chat.screen.note(", and ".join(done))


def _last_answer(chat: Chat) -> str:
    for message in reversed(chat.session.messages):
        if message.role == "assistant" and kind_of(message) is Content:
            return message.content
    raise GptOssError("nothing has been answered yet")


def _feed(program: tuple[str, ...], text: str) -> bool:
    """Whether the program is there and has taken the text."""
    if shutil.which(program[0]) is None:
        return False
    try:
        # Not through a pipe: xclip stays alive, and would keep it open.
        done = subprocess.run(
            program, input=text.encode(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _reasoning(chat: Chat, what: str) -> None:
    session, screen = chat.session, chat.screen
    if what == "show":
        screen.show_reasoning = True
        screen.note("".join(chat.reasoning) or "reasoning will be shown")
    elif what == "hide":
        screen.show_reasoning = None
        screen.note("reasoning will be folded")
    elif what in EFFORTS:
        # "none" is "low" with an empty analysis written for the model: the prompt says the same.
        is_new = {session.reasoning_effort, what} - {"none", "low"} and what != session.reasoning_effort
        session.set_reasoning_effort(what)
        again = is_new and session.messages
        screen.note(f"reasoning {what}" + (": the next turn reads the conversation again" if again else ""))
    elif what:
        raise WrongUsage
    else:
        screen.note(f"reasoning {session.reasoning_effort}")


def _tools(chat: Chat, _: str) -> None:
    toolbox, results = chat.session.toolbox, {}
    for message in chat.session.messages:
        if message.role not in ("user", "assistant"):
            name = message.role.removeprefix(FUNCTIONS)
            results[name if name in toolbox.functions else name.partition(".")[0]] = message.content
    tools = {name: function.tool.description for name, function in toolbox.functions.items()}
    tools |= dict.fromkeys(toolbox.builtins, "built in")
    for name, description in tools.items():
        asks = (toolbox.functions.get(name) or toolbox.builtins[name]).asks
        chat.screen.note(f"{name}: {description}{' (asks first)' if asks else ''}")
        if name in results:
            chat.screen.note(f"it answered last: {results[name]}")
    if not tools:
        chat.screen.note("no tools")


def _model(chat: Chat, name: str) -> None:
    model = chat.session.model
    if not name:
        chat.screen.note(f"{model.path.name} in {model.path}, context {model.context:,} tokens")
        return
    if chat.load is None:
        raise GptOssError("no other model can be loaded here")
    folder, before, transcript = resolve(name), model.path, chat.session.transcript
    chat.session.close()
    del model
    chat.session, chat.over = None, True  # its memory is needed, and without a session no chat goes on
    try:
        _switch(chat, folder, transcript)
    except GptOssError:
        _switch(chat, before, transcript)
        raise
    chat.screen.note(f"{folder.name}: the next turn reads the conversation again")


def _switch(chat: Chat, folder: Path, transcript: Transcript) -> None:
    session = chat.load(str(folder))
    session.restore(transcript)
    chat.use(session)
    chat.over = False


def _context(chat: Chat, _: str) -> None:
    session, cache = chat.session, chat.session.prompt_cache.cache
    head, counts = session.token_counts
    rows, total = [("instructions and tools", head)], session.prompt_tokens
    for message, tokens in zip(session.messages, counts, strict=True):
        if message.role == "user":
            title = " ".join(message.content[:200].split())
            rows.append((f"turn {len(rows)}: {title if len(title) <= 40 else title[:36] + ' ...'}", 0))
        rows[-1] = rows[-1][0], rows[-1][1] + tokens
    rows += [("in all", total), (f"left of {session.model.context:,}", session.model.context - total)]
    lines = [f"{what:50}{tokens:>9,} tokens" for what, tokens in rows]
    marks = ", ".join(f"{mark.offset:,}" for mark in session.prompt_cache.snapshots) or "none"
    lines.append(f"KV state: {cache.offset:,} positions in {size_text(cache.nbytes)}, marks: {marks}")
    chat.screen.note("\n".join(lines))


def _save(chat: Chat, name: str) -> None:
    if os.sep in name or name.endswith(".json"):
        path = Path(name).expanduser()
        _transcript_for(chat, path).write(path)
        chat.screen.note(f"saved to {name}")
    elif chat.autosave is None:
        raise GptOssError("sessions are not kept here: /save FILE.json writes a file")
    elif chat.autosave.name is None:
        raise GptOssError(NOTHING_YET)
    else:
        if name:
            chat.autosave.rename(name)
        chat.screen.note(f"kept as {chat.autosave.name}")


def _transcript_for(chat: Chat, path: Path) -> Transcript:
    """To be written to a file. Raises GptOssError where nothing was said, or the file is not to be replaced."""
    if not chat.session.messages:
        raise GptOssError(NOTHING_YET)
    chat.check_replaced(path)
    return chat.session.transcript


def _load(chat: Chat, name: str) -> None:
    transcript = Transcript.read(Path(name).expanduser())
    chat.session.restore(transcript)
    chat.leave()
    chat.screen.note(f"{len(transcript.messages)} messages from {name}")
    chat.recall()


def _export(chat: Chat, name: str) -> None:
    path = Path(name).expanduser()
    if path.suffix == ".json":
        _transcript_for(chat, path).write(path)
    elif path.suffix == ".md":
        replace_file(path, _transcript_for(chat, path).as_markdown())
    else:
        raise WrongUsage
    chat.screen.note(f"written to {name}")


def _stats(chat: Chat, _: str) -> None:
    session = chat.session
    lines = [f"context {session.prompt_tokens:,} of {session.model.context:,} tokens"]
    if experts := session.model.expert_stats:
        lines.append(
            f"experts: {experts.hit_rate:.1%} were in memory, {size_text(experts.bytes_read)} read,"
            f" {experts.stall_seconds:.1f} s of waiting for them"
        )
    for number, turn in enumerate(session.stats, 1):
        lines.append(
            f"turn {number}: {turn.prefilled:,} tokens read, first token after {turn.first_token_seconds:.2f} s,"
            f" {turn.decoded:,} tokens at {turn.tokens_per_second:.1f} tokens/s"
        )
    chat.screen.note("\n".join(lines))


def _exit(chat: Chat, _: str) -> None:
    chat.over = True


COMMANDS = {
    command.name: command
    for command in (
        Command("/help", "this list", _help),
        Command("/retry", "answer the last question once more", _retry),
        Command("/continue", "go on with an answer that broke off", _continue),
        Command("/undo", "take back the last question and its answer", _undo, changes=True),
        Command("/edit", "take it back, to ask it differently", _edit, changes=True),
        Command("/copy [code]", "the last answer, or its last code, to the clipboard", _copy),
        Command(
            f"/reasoning [{'|'.join(EFFORTS)}|show|hide]",
            "how long to think, and whether it is shown",
            _reasoning,
            changes=True,
        ),
        Command("/tools", "what the model may call, and what that answered last", _tools),
        Command("/model [NAME]", "which model this is, or go on with another", _model, changes=True),
        Command("/context", "what fills the context", _context),
        Command("/stats", "speed and context of this conversation", _stats),
        Command("/system [TEXT|none]", "the instructions, or a new conversation with others", _system),
        Command("/reset", "a new conversation", _reset),
        Command("/save [NAME|FILE]", "give this session a name, or write it to a file", _save),
        Command("/load FILE", "go on with a conversation from a file", _load, changes=True),
        Command("/export FILE.md|FILE.json", "write this conversation to a file", _export),
        Command("/exit", "leave", _exit),
    )
}
