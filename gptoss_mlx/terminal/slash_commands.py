"""What begins with a slash: the table of all commands, and what those do that are about the conversation itself.

A command says everything as notes on the chat's screen; what goes wrong is a GptOssError. Commands for settings and for
what is saved have modules of their own.
"""

from __future__ import annotations

import difflib
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

from ..errors import GptOssError
from ..harmony.messages import FUNCTIONS
from ..harmony.parse import Content, kind_of
from ..memory.system import size_text
from .safe_text import cut
from .session_commands import SESSION_COMMANDS
from .setting_commands import SETTING_COMMANDS
from .slash_command import Command, WrongUsage
from .stats import stats_lines

if TYPE_CHECKING:
    from .controller import Chat

CLIPBOARD_PROGRAMS = (("pbcopy",), ("wl-copy",), ("xclip", "-selection", "clipboard"))
CODE_BLOCK = re.compile(r"^ {0,3}(`{3,}|~{3,})[^\n]*\n(.*?)(?:^ {0,3}\1|\Z)", re.DOTALL | re.MULTILINE)
COMMAND_LINE = re.compile(r"/(?:[A-Za-z]+|\?)([ \t].*)?")
NEAR = 0.7  # similarity of a command to what was typed, from which on it is suggested
MIN_COLUMNS = 70  # of a window in which a command and what it does share a line
KEYS = """\
Ctrl-C stops an answer and keeps what has arrived; Ctrl-D leaves, and so does exit on its own.
To continue on another line, end a line with \\ or press Alt-Enter; everything between two lines of
\"\"\" is one message. //word sends /word, and @file attaches a file. !command runs in your shell and
sends its output, but asks first; answer no to send the line as text. Ctrl-G opens your editor.
Several lines at once are always a message."""


def is_command(text: str) -> bool:
    """Whether a typed text is a command, known or not, and no message: paths and pasted lines are messages."""
    return COMMAND_LINE.fullmatch(text.rstrip("\n")) is not None


def run_line(chat: Chat, line: str) -> None:
    """Run the command that a line names. Raises GptOssError."""
    name, *rest = line.strip().split(maxsplit=1)
    command = NAMES.get(name.lower())
    if command is None:
        near = difflib.get_close_matches(name.lower(), NAMES, n=1, cutoff=NEAR)
        meant = [each for each in near if not NAMES[each].destroys]
        chat.screen.note(
            f"unknown command {name}: " + (f"did you mean {meant[0]}?" if meant else "/help lists them all")
        )
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
    if shutil.get_terminal_size().columns < MIN_COLUMNS:
        lines = [f"{command.usage}\n  {command.help}" for command in COMMANDS.values()]
    else:
        width = max(len(command.usage) for command in COMMANDS.values()) + 2
        lines = [f"{command.usage:{width}}{command.help}" for command in COMMANDS.values()]
    chat.screen.note("\n".join([*lines, KEYS]))


def _reset(chat: Chat, _: str) -> None:
    chat.session.reset()
    chat.leave()
    chat.screen.note("new conversation")


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


def _context(chat: Chat, _: str) -> None:
    session, cache = chat.session, chat.session.prompt_cache.cache
    head, counts = session.token_counts
    rows, total = [("instructions and tools", head)], session.prompt_tokens
    for message, tokens in zip(session.messages, counts, strict=True):
        if message.role == "user":
            rows.append((f"turn {len(rows)}: {cut(' '.join(message.content[:200].split()), 40)}", 0))
        rows[-1] = rows[-1][0], rows[-1][1] + tokens
    rows += [("total", total), (f"left of {session.model.context:,}", session.model.context - total)]
    width = min(50, max(shutil.get_terminal_size().columns - 17, 12))
    lines = [f"{cut(what, width - 1):{width}}{tokens:>9,} tokens" for what, tokens in rows]
    snapshots = ", ".join(f"{snapshot.offset:,}" for snapshot in session.prompt_cache.snapshots) or "none"
    lines.append(f"KV cache: {cache.offset:,} tokens in {size_text(cache.nbytes)}, snapshots: {snapshots}")
    chat.screen.note("\n".join(lines))


def _stats(chat: Chat, _: str) -> None:
    chat.screen.note("\n".join(stats_lines(chat.session, has_pictures=chat.screen.has_pictures)))


def _exit(chat: Chat, _: str) -> None:
    chat.over = True


COMMANDS = {
    command.name: command
    for command in (
        Command("/help", "show this list", _help, also=("/?",)),
        Command("/retry", "answer the last question again", _retry),
        Command("/continue", "resume an answer that was stopped", _continue),
        Command("/undo", "remove the last question and its answer", _undo, changes=True, destroys=True),
        Command("/edit", "remove the last question, to ask it differently", _edit, changes=True, destroys=True),
        Command("/copy [code]", "copy the last answer, or its last code block", _copy),
        Command("/reset", "clear the chat and start a new one", _reset, destroys=True, also=("/clear", "/new")),
        *SETTING_COMMANDS,
        Command("/tools", "list the tools and their last results", _tools),
        Command("/context", "show what fills the context", _context),
        Command("/stats", "show the memory, and the speed of each turn", _stats),
        *SESSION_COMMANDS,
        Command("/exit", "leave the chat", _exit, also=("/bye", "/quit", "/q")),
    )
}
NAMES = COMMANDS | {name: command for command in COMMANDS.values() for name in command.also}
