"""What begins with a slash: a table of commands, and what each does to a chat.

A command says everything as notes on the chat's screen; what goes wrong is a GptOssError.
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

from ..chat.session import EFFORTS, Session
from ..chat.transcript import Transcript
from ..errors import GptOssError
from ..files import replace_file
from ..harmony.messages import FUNCTIONS
from ..harmony.parse import Content, kind_of
from ..memory.system import size_text
from ..model.model_store import resolve
from .safe_text import cut

if TYPE_CHECKING:
    from .controller import Chat

CLIPBOARD_PROGRAMS = (("pbcopy",), ("wl-copy",), ("xclip", "-selection", "clipboard"))
CODE_BLOCK = re.compile(r"^ {0,3}(`{3,}|~{3,})[^\n]*\n(.*?)(?:^ {0,3}\1|\Z)", re.DOTALL | re.MULTILINE)
COMMAND_LINE = re.compile(r"/[A-Za-z]+([ \t].*)?")
NEAR = 0.7  # similarity of a command to what was typed, from which on it is suggested
NOTHING_YET = "nothing has been said yet"
RE_READS = "; the next turn reads the conversation again"
KEYS = """\
Ctrl-C stops an answer and keeps what has arrived; Ctrl-D leaves. To continue on another line,
end a line with \\ or press Alt-Enter; everything between two lines of \"\"\" is one message.
//word sends /word, and @file attaches a file. !command runs in your shell and sends its output,
but asks first; answer no to send the line as text. Several lines at once are always a message."""


@dataclass(frozen=True)
class Command:
    usage: str
    """The name and its argument, in brackets if it is optional."""
    help: str
    run: Callable[[Chat, str], None]
    changes: bool = False
    """Whether it changes the conversation or its settings, which are then saved; answers are saved anyway."""

    @property
    def name(self) -> str:
        return self.usage.split()[0]

    def takes(self, rest: str) -> bool:
        argument = self.usage.removeprefix(self.name).strip()
        return bool(argument) if rest else not argument or argument.startswith("[")


class WrongUsage(Exception):
    """The argument is missing, unknown or too much."""


def is_command(text: str) -> bool:
    """Whether a typed text is a command, known or not, and no message: paths and pasted lines are messages."""
    return COMMAND_LINE.fullmatch(text.rstrip("\n")) is not None


def run_line(chat: Chat, line: str) -> None:
    """Run the command that a line names. Raises GptOssError."""
    name, *rest = line.strip().split(maxsplit=1)
    command = COMMANDS.get(name.lower())
    if command is None:
        near = difflib.get_close_matches(name.lower(), COMMANDS, n=1, cutoff=NEAR)
        chat.screen.note(f"unknown command {name}: " + (f"did you mean {near[0]}?" if near else "/help lists them all"))
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
    chat.screen.note(f"removed: {cut(question, 70)}")


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
            raise GptOssError("the last answer has no code block")
        text = blocks[-1][1]
    size = f"{len(text):,} characters"
    programs = [program[0] for program in CLIPBOARD_PROGRAMS if _feed(program, text)]
    done = [f"copied {size} with {' and '.join(programs)}"] if programs else []
    if chat.screen.clipboard(text):  # no terminal reports whether it did
        done.append(f"asked the terminal to copy {'them' if programs else size}")
    if not done:
        raise GptOssError("cannot copy: this terminal takes no requests, and there is no pbcopy, wl-copy or xclip")
    chat.screen.note(", and ".join(done))


def _last_answer(chat: Chat) -> str:
    for message in reversed(chat.session.messages):
        if message.role == "assistant" and kind_of(message) is Content:
            return message.content
    raise GptOssError("there is no answer yet")


def _feed(program: tuple[str, ...], text: str) -> bool:
    """Whether the program is installed and has taken the text."""
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
            chat.screen.note(f"last result: {results[name]}")
    if not tools:
        chat.screen.note("no tools")


def _model(chat: Chat, name: str) -> None:
    model = chat.session.model
    if not name:
        chat.screen.note(f"{model.path.name} in {model.path}, context {model.context:,} tokens")
        return
    if chat.load is None:
        raise GptOssError("this chat cannot load another model")
    folder, before, transcript = resolve(name), model.path, chat.session.transcript
    chat.session.close()
    del model, chat.session  # whose memory is needed
    chat.over = True  # unless a model is loaded
    try:
        _continue_with(chat, chat.load(str(folder)), transcript)
    except GptOssError:
        _continue_with(chat, chat.load(str(before)), transcript)
        raise
    chat.screen.note(f"switched to {folder.name}{RE_READS}")


def _continue_with(chat: Chat, session: Session, transcript: Transcript) -> None:
    session.restore(transcript)
    chat.use(session)
    chat.over = False


def _context(chat: Chat, _: str) -> None:
    session, cache = chat.session, chat.session.prompt_cache.cache
    head, counts = session.token_counts
    rows, total = [("instructions and tools", head)], session.prompt_tokens
    for message, tokens in zip(session.messages, counts, strict=True):
        if message.role == "user":
            rows.append((f"turn {len(rows)}: {cut(' '.join(message.content[:200].split()), 40)}", 0))
        rows[-1] = rows[-1][0], rows[-1][1] + tokens
    rows += [("total", total), (f"left of {session.model.context:,}", session.model.context - total)]
    lines = [f"{what:50}{tokens:>9,} tokens" for what, tokens in rows]
    snapshots = ", ".join(f"{snapshot.offset:,}" for snapshot in session.prompt_cache.snapshots) or "none"
    lines.append(f"KV cache: {cache.offset:,} tokens in {size_text(cache.nbytes)}, snapshots: {snapshots}")
    chat.screen.note("\n".join(lines))


def _save(chat: Chat, name: str) -> None:
    if os.sep in name or name.endswith(".json"):
        path = Path(name).expanduser()
        _transcript_for(chat, path).write(path)
        chat.screen.note(f"saved to {name}")
    elif chat.autosave is None:
        raise GptOssError("this chat saves no sessions: /save FILE.json writes a file")
    elif chat.autosave.name is None:
        raise GptOssError(NOTHING_YET)
    else:
        if name:
            chat.autosave.rename(name)
        chat.screen.note(f"saved as {chat.autosave.name}")


def _transcript_for(chat: Chat, path: Path) -> Transcript:
    """The conversation, for a file. Raises GptOssError if nothing was said, or if the file is not to be replaced."""
    if not chat.session.messages:
        raise GptOssError(NOTHING_YET)
    chat.check_replaced(path)
    return chat.session.transcript


def _load(chat: Chat, name: str) -> None:
    transcript = Transcript.read(Path(name).expanduser())
    chat.session.restore(transcript)
    chat.leave()
    chat.screen.note(f"loaded {len(transcript.messages)} messages from {name}")
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
            f"experts: {experts.hit_rate:.1%} found in memory, {size_text(experts.bytes_read)} read,"
            f" {experts.stall_seconds:.1f} s waiting for them"
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
        Command("/help", "show this list", _help),
        Command("/retry", "answer the last question again", _retry),
        Command("/continue", "resume an answer that was stopped", _continue),
        Command("/undo", "remove the last question and its answer", _undo, changes=True),
        Command("/edit", "remove the last question, to ask it differently", _edit, changes=True),
        Command("/copy [code]", "copy the last answer, or its last code block", _copy),
        Command(
            f"/reasoning [{'|'.join(EFFORTS)}|show|hide]",
            "set the reasoning effort, or show or hide reasoning",
            _reasoning,
            changes=True,
        ),
        Command("/tools", "list the tools and their last results", _tools),
        Command("/model [NAME]", "show which model this is, or switch to another", _model, changes=True),
        Command("/context", "show what fills the context", _context),
        Command("/stats", "show the speed of each turn", _stats),
        Command("/system [TEXT|none]", "show the instructions, or start again with others", _system),
        Command("/reset", "clear the chat and start a new one", _reset),
        Command("/save [NAME|FILE]", "name this session, or save it to a file", _save),
        Command("/load FILE", "continue a conversation from a file", _load, changes=True),
        Command("/export FILE.md|FILE.json", "write this conversation to a file", _export),
        Command("/exit", "leave the chat", _exit),
    )
}
