"""`chat`, `generate` and `demo`: the commands in which a model answers."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import fields, replace
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ..errors import GptOssError, printable
from ..memory.system import parse_size
from ..model.model_store import demo_folder, remember, user_file, usual_model
from ..untrusted import os_error_text
from . import presets
from .completion import complete_sessions
from .config_file import parameters
from .conversion import convert_demo, print_report
from .help import command
from .loading import load_model, warn_without_kernels
from .options import (
    ChatOptions,
    ModelOptions,
    PresetOptions,
    Size,
    Text,
    ToolOptions,
    UserPath,
    model_argument,
    pass_chat_options,
    pass_model_options,
    pass_preset_options,
    pass_tool_options,
)
from .output import print_text

if TYPE_CHECKING:
    from ..chat.autosave import SessionAutosave
    from ..chat.presets import Template
    from ..chat.session import Approve, Session
    from ..chat.store import SessionEntry, Store
    from ..engine.generate import Model
    from ..harmony.parse import ToolCall
    from ..tools.toolbox import Builtin, Function


NOTHING_TO_ANSWER = click.UsageError("nothing to answer: give MODEL and TEXT, or -p TEXT, or pipe text in")
CUT_OFF = "stopped in the middle of the answer, at --max-tokens {maximum}"
DEMO_OPTIONS = ChatOptions(max_tokens=400)


@command(epilog="Example: gptoss-mlx chat gpt-oss-20b --reasoning low")
@model_argument(required=False)
@click.option(
    "--resume",
    is_flag=False,
    flag_value="",
    metavar="[NAME]",
    shell_complete=complete_sessions,
    help="Resume the session NAME; without NAME, choose one, or the latest where there is no terminal.",
)
@pass_preset_options
@pass_chat_options
@pass_tool_options
@pass_model_options
@click.option(
    "--when-full",
    type=click.Choice(["refuse", "drop"]),
    default="refuse",
    show_default=True,
    help="When the context is full, refuse new messages or drop the oldest turns.",
)
@click.option("--no-kv", is_flag=True, help="Don't save the KV cache; resuming re-reads the chat.")
@click.option("--kv-limit", type=Size(), default="4GB", show_default=True, help="Disk limit for saved KV caches.")
@click.option(
    "--show-reasoning/--hide-reasoning",
    default=None,
    show_default="shown until the answer starts",
    help="Keep the reasoning on the screen, or hide it.",
)
@click.option("--plain", is_flag=True, help="Plain output with labels, for screen readers.")
def chat(
    model: str | None,
    resume: str | None,
    when_full: str,
    no_kv: bool,
    kv_limit: str,
    show_reasoning: bool | None,
    plain: bool,
    preset_options: PresetOptions,
    chat_options: ChatOptions,
    tool_options: ToolOptions,
    model_options: ModelOptions,
) -> None:
    """Chat with MODEL in the terminal, offline. Without a terminal, each line of standard input is a message.

    MODEL is a folder, gpt-oss-20b, gpt-oss-120b, or a Hugging Face id; without it, the session's model, the default, or
    the one used last. Chats are saved as sessions: see `gptoss-mlx sessions`.
    """
    from ..chat.store import Store, sessions_folder

    store = Store(sessions_folder())
    saved = None if resume is None else _session_to_resume(store, resume)
    chosen = ChosenPreset(preset_options, chat_options, tool_options, drop_when_full=when_full == "drop")
    from ..chat.autosave import SessionAutosave
    from ..terminal.loop import run

    autosave = SessionAutosave(store, saved, kv_limit=None if no_kv else parse_size(kv_limit))

    def load(name: str) -> Session:
        session = chosen.new_session(load_model(name, model_options))
        remember(session.model.path)
        return session

    session = load(model or _model_of(saved))
    if saved:
        _resume(session, autosave, chosen)
    run(
        session,
        show_reasoning=show_reasoning,
        history=user_file("history"),
        autosave=autosave,
        load=load,
        presets=chosen,
        yes=tool_options.yes,
        plain=plain,
    )


def _session_to_resume(store: Store, name: str) -> SessionEntry:
    """The session of that name; without one, the one that a person chooses, or else the latest. Raises GptOssError."""
    from ..terminal.input import choose
    from ..terminal.session_list import latest, lines

    rows = latest(store) if not name and sys.stdin.isatty() and sys.stdout.isatty() else []
    if len(rows) < 2:
        return store.find(name)
    click.echo("\n".join(lines(rows)))
    number = choose("number to resume, Enter for the latest: ", len(rows))
    if number is None:
        raise click.Abort
    return rows[max(number, 1) - 1].entry


def _model_of(saved: SessionEntry | None) -> str:
    """The model of a session, or else the usual one."""
    from ..chat.transcript import Transcript

    return (saved and Transcript.read(saved.transcript).model) or usual_model()


def _resume(session: Session, autosave: SessionAutosave, chosen: ChosenPreset) -> None:
    """Restore the session as it was saved, but for what the command line or its preset says; report what has to be
    read again."""
    system, reasoning = session.instructions, session.reasoning_effort
    autosave.resume(session)
    given = _typed_options() | chosen.values.keys()
    if "system" in given:
        session.instructions = system
    if "reasoning" in given:
        session.set_reasoning_effort(reasoning)
    click.echo(printable(autosave.resumed_text(session)), err=True)


@command(epilog="Example: git diff | gptoss-mlx generate gpt-oss-20b -p 'Write a commit message.'")
@model_argument(required=False)
@click.argument("words", nargs=-1, type=Text(), metavar="[TEXT]...")
@click.option("-p", "--prompt", type=Text(), metavar="TEXT", help="The prompt; piped standard input is appended to it.")
@pass_preset_options
@pass_chat_options
@pass_tool_options
@pass_model_options
@click.option(
    "--record-routing",
    type=UserPath(dir_okay=False),
    metavar="FILE",
    help="Record the experts that each token used, for `bench --replay-routing`.",
)
def generate(
    model: str | None,
    words: tuple[str, ...],
    prompt: str | None,
    record_routing: Path | None,
    preset_options: PresetOptions,
    chat_options: ChatOptions,
    tool_options: ToolOptions,
    model_options: ModelOptions,
) -> None:
    """Answer one prompt; only the answer goes to standard output.

    MODEL is a folder, gpt-oss-20b, gpt-oss-120b, or a Hugging Face id; without it, the default or the one used last.
    TEXT or -p is the prompt; one of several words can stand alone: gptoss-mlx generate "What is MXFP4?"
    """
    if words:
        if prompt is not None:
            raise click.UsageError("give the prompt after MODEL or with -p, not both")
        prompt = " ".join(words)
    if model and prompt is None and len(model.split()) > 1 and not os.path.lexists(os.path.expanduser(model)):
        prompt = Text().convert(model, None, None)
        model = (click.get_current_context().default_map or {}).get("model")
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")
    begun = _piped(1)
    if not (prompt or begun):
        raise NOTHING_TO_ANSWER
    chosen = ChosenPreset(preset_options, chat_options, tool_options, approve=_approval(tool_options.yes))
    if record_routing and not record_routing.parent.is_dir():
        raise click.UsageError(f"--record-routing: there is no folder {record_routing.parent}")
    with (
        closing(chosen.new_session(load_model(model or _model_of(None), model_options))) as session,
        _recorded(session.model, record_routing) if record_routing else nullcontext(),
    ):
        _generate(session, chosen.filled(_question(prompt, begun, session.longest_text)))


@contextmanager
def _recorded(model: Model, file: Path) -> Iterator[None]:
    """Write to `file`, however the block ends, which experts its tokens used."""
    from ..bench.routing import recording

    with recording(model) as recorder:
        try:
            yield
        finally:
            recorder.trace().save(file)


def _question(prompt: str | None, begun: str, maximum: int) -> str:
    """The prompt, and after it what is piped in, of which `begun` is read. What has more than `maximum` characters fits
    no context: it is cut, and otherwise left as is."""
    piped = begun and begun + _piped(maximum)
    text = "\n\n".join(part for part in (prompt, piped if len(piped) > maximum else piped.strip()) if part)
    if not text:
        raise NOTHING_TO_ANSWER
    return text


def _piped(maximum: int) -> str:
    """At most so many characters of standard input, if it is not a person's."""
    if sys.stdin.isatty():
        return ""
    try:
        return sys.stdin.read(maximum)
    except OSError as error:
        raise GptOssError(f"cannot read standard input: {os_error_text(error)}") from None


def _approval(yes: bool) -> Approve:
    """Show on standard error what a tool would do, and ask where somebody can answer."""
    from ..terminal.safe_text import call_text

    def approve(call: ToolCall, preview: str) -> bool:
        click.echo(call_text(call.name, preview), err=True)
        return yes or (sys.stdin.isatty() and sys.stderr.isatty() and click.confirm("run this?", err=True))

    return approve


def _generate(session: Session, text: str) -> None:
    from ..harmony.parse import Content, Stop
    from ..terminal.progress_bars import prefill_progress

    written = stop = ""
    with prefill_progress() as progress:
        for event in session.send(text, on_prefill=progress):
            if isinstance(event, Content):
                apart = "\n\n" if event.begins and written else ""
                written = event.text
                print_text(apart + written)
            elif isinstance(event, Stop):
                stop = event.reason
    if written and not written.endswith("\n"):
        click.echo()
    stats = session.stats[-1]
    if repeated := stats.repeated:
        raise GptOssError(
            f"stopped, because the model was repeating {repeated}: try --repetition-penalty 1.1, or another --seed"
        )
    if stats.finished:
        return
    has_room = stats.context_used < session.model.context - 1
    if written and stop == "none" and has_room and session.max_tokens and session.response_schema is None:
        click.echo(CUT_OFF.format(maximum=session.max_tokens), err=True)
    else:
        problem = "the model stopped in the middle of its answer" if written else "the model stopped before answering"
        raise GptOssError(f"{problem}: raise --max-tokens or --context, or lower --reasoning")


@command(epilog="Example: gptoss-mlx demo")
def demo() -> None:
    """Convert a small model, ask it three questions, and chat.

    The model is included in gptoss-mlx, so that nothing is downloaded. Other commands know it as `demo`.
    """
    from ..demo import FUNCTIONS, QUESTIONS
    from ..terminal.loop import ask, run

    print_report(convert_demo())
    new_session = session_maker(DEMO_OPTIONS, ToolOptions(), functions=FUNCTIONS)
    session = new_session(load_model(str(demo_folder()), ModelOptions()))
    for question in QUESTIONS:  # the last one stays, so that /retry, /undo and /edit have something to work on
        session.reset()
        ask(session, question, show_reasoning=True)
    if sys.stdin.isatty() and sys.stdout.isatty():
        run(session, show_reasoning=True, history=user_file("history"))
    warn_without_kernels()


def session_maker(
    chat: ChatOptions, tools: ToolOptions, functions: Sequence[Function] = (), **more: Any
) -> Callable[[Model], Session]:
    """What makes a session of a model. What is wrong with the options and their files shows before one is loaded."""
    chat.sampling(greedy=False)
    schema = None
    if tools.json_schema:
        from ..engine.json_grammar import load_schema

        schema = load_schema(tools.json_schema)
    if tools.tools:
        from ..tools.commands import load_tools

        functions = load_tools(tools.tools)
    builtins = list(_builtins(tools))

    def new_session(model: Model) -> Session:
        from ..chat.session import Session

        return Session(
            model,
            functions=functions,
            builtins=builtins,
            response_schema=schema,
            sampling=chat.sampling(greedy=model.is_greedy),
            instructions=chat.system,
            reasoning_effort=chat.reasoning,
            max_tokens=chat.max_tokens,
            max_reasoning=chat.max_reasoning,
            **more,
        )

    return new_session


class ChosenPreset:
    """Makes sessions with the options of a command, over which a preset's may hold. It is a chat's `Presets`."""

    def __init__(self, preset: PresetOptions, chat: ChatOptions, tools: ToolOptions, **more: Any):
        """The first preset is the one that the command line names, but for what it says itself. Raises GptOssError."""
        if preset.param and not preset.preset:
            raise click.UsageError("--param sets a variable of a preset's template: name one with --preset")
        self._options, self._more = (chat, tools), more
        names = {field.name for options in self._options for field in fields(options)}
        command = click.get_current_context().command
        self._known = {key: option for key, option in parameters(command).items() if option.name in names}
        self._take(preset.preset, dict(preset.param), _typed_options())

    def names(self) -> Iterable[str]:
        return presets.names()

    def switch(self, name: str | None, values: Mapping[str, str], model: Model) -> Session:
        self._take(name, values)
        return self.new_session(model)

    def filled(self, message: str) -> str:
        return self._template.filled(message) if self._template else message

    def _take(self, name: str | None, values: Mapping[str, str], but: Container[str] = ()) -> None:
        chat, tools = self._options
        template: Template | None = None
        found: dict[str, Any] = {}
        if name is not None:
            preset = presets.read(name, self._known)
            found = {key: value for key, value in preset.values.items() if key not in but}
            chat = replace(chat, **{key: found[key] for key in found if hasattr(chat, key)})
            tools = replace(tools, **{key: found[key] for key in found if hasattr(tools, key)})
            try:
                chat.sampling(greedy=False)
                template = _template(preset.template, values)
            except GptOssError as error:
                raise GptOssError(f"{preset.path}: {error}") from None
        self.new_session = session_maker(chat, tools, **self._more)
        self.name, self.values, self._template = name, found, template


def _template(text: str | None, values: Mapping[str, str]) -> Template | None:
    from ..chat.presets import Template

    if text is None and values:
        raise GptOssError(f"there is no template, and so no variable ${next(iter(values))} to set")
    return None if text is None else Template(text, values)


def _typed_options() -> set[str]:
    """The names of the parameters that the command line gives."""
    context = click.get_current_context()
    return {name for name in context.params if context.get_parameter_source(name) == ParameterSource.COMMANDLINE}


def _builtins(tools: ToolOptions) -> Iterator[Builtin]:
    if tools.browse:
        from ..tools.browser import Browser

        yield Browser(tools.browse)
    if tools.python or tools.unsafe_python:
        from ..tools.python import PythonTool

        yield PythonTool(unsafe=tools.unsafe_python)
