"""`chat`, `generate` and `demo`: the commands in which a model answers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ..errors import GptOssError, printable
from ..memory.system import parse_size
from ..model.model_store import home, last_used, remember
from ..untrusted import os_error_text
from .completion import complete_sessions
from .loading import convert_with_progress, load_model, print_report, warn_without_kernels
from .options import Size, Text, memory_options, model_argument, threads_option
from .output import print_text

if TYPE_CHECKING:
    from ..chat.autosave import SessionAutosave
    from ..chat.session import Approve, Session
    from ..chat.store import SessionEntry
    from ..engine.generate import Model
    from ..engine.sampling import Sampling
    from ..harmony.parse import ToolCall


NOTHING_TO_ANSWER = click.UsageError("nothing to answer: give -p TEXT, or pipe text in")


def sampling_options(command: Callable) -> Callable:
    """The options that decide how tokens are chosen; they arrive as `sampling`, ready to use."""
    options = [
        click.option("--temperature", type=float, default=1.0, show_default=True, help="0 is greedy."),
        click.option(
            "--top-p", type=float, default=1.0, show_default=True, help="Keep the likeliest tokens up to this sum."
        ),
        click.option("--top-k", type=int, default=0, show_default=True, help="Keep this many tokens; 0 keeps all."),
        click.option(
            "--min-p", type=float, default=0.0, show_default=True, help="Drop tokens below this share of the likeliest."
        ),
        click.option(
            "--repetition-penalty",
            type=float,
            default=1.0,
            show_default=True,
            help="Above 1 makes repeats less likely.",
        ),
        click.option("--seed", type=int, show_default="a new one each time", help="Same seed, same tokens."),
        click.option(
            "--max-tokens",
            type=click.IntRange(min=1),
            show_default="as many as the context has",
            help="Stop an answer after this many tokens.",
        ),
        click.option(
            "--reasoning",
            type=click.Choice(["none", "low", "medium", "high"]),
            default="medium",
            show_default=True,
            help="How long to think.",
        ),
        click.option(
            "--max-reasoning",
            type=click.IntRange(min=0),
            show_default="no limit",
            help="After this many tokens of reasoning, answer.",
        ),
        click.option("--system", type=Text(), metavar="TEXT", help="Instructions for the whole conversation."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def tool_options(command: Callable) -> Callable:
    """The options that decide what the model may do beside talking; `_tools` makes something of them."""
    file, folder = (
        click.Path(path_type=Path, exists=True, dir_okay=kind, file_okay=not kind) for kind in (False, True)
    )
    options = [
        click.option("--tools", type=file, metavar="FILE", help="Functions to call, in TOML: see examples/tools.toml."),
        click.option("--python", is_flag=True, help="Let the model run Python, in a sandbox without network."),
        click.option("--unsafe-python", is_flag=True, help="The same without a sandbox: it can do what you can."),
        click.option("--browse", type=folder, metavar="DIR", help="Let the model search and read the files of DIR."),
        click.option("-y", "--yes", is_flag=True, help="Run what the model calls without asking."),
        click.option("--json-schema", type=file, metavar="FILE", help="Answer in JSON that follows this schema."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.command(epilog="Example: gptoss-mlx chat gpt-oss-20b --reasoning low")
@model_argument(required=False)
@click.option(
    "--resume",
    is_flag=False,
    flag_value="",
    metavar="[NAME]",
    shell_complete=complete_sessions,
    help="Go on with a session, or with the latest.",
)
@sampling_options
@tool_options
@memory_options
@threads_option
@click.option(
    "--when-full",
    type=click.Choice(["refuse", "drop"]),
    default="refuse",
    show_default=True,
    help="When the context is full: refuse to go on, or drop the oldest turns.",
)
@click.option("--no-kv", is_flag=True, help="Keep no KV state with the session: it will be read again.")
@click.option("--kv-limit", type=Size(), default="4GB", show_default=True, help="Of the KV states of all sessions.")
@click.option("--show-reasoning/--hide-reasoning", default=None, show_default="folded when the answer starts")
@click.option("--plain", is_flag=True, help="Redraw nothing, and say in words what each thing is.")
def chat(model: str | None, resume: str | None, show_reasoning: bool | None, **options: Any) -> None:
    """Chat with MODEL in the terminal, offline. Without a terminal, each line of standard input is a message.

    MODEL is a folder, gpt-oss-20b, gpt-oss-120b, or a hub id; without it, the one of the session, or used last. Every
    chat is a session on this disk: `gptoss-mlx sessions` lists them.
    """
    from ..chat.store import Store, sessions_folder

    store = Store(sessions_folder())
    kept = None if resume is None else store.find(resume)
    more = _tools(options) | {"drop_when_full": options["when_full"] == "drop"}
    from ..chat.autosave import SessionAutosave
    from ..terminal.loop import run

    autosave = SessionAutosave(store, kept, kv_limit=None if options["no_kv"] else parse_size(options["kv_limit"]))

    def load(name: str) -> Session:
        session = _session(load_model(name, options), options, **more)
        remember(session.model.path)
        return session

    name = model or _model_of(kept)
    run(
        _resumed(load(name), autosave, options) if kept else load(name),
        show_reasoning=show_reasoning,
        history=home() / "history",
        autosave=autosave,
        load=load,
        yes=options["yes"],
        plain=options["plain"],
    )


def _resumed(session: Session, autosave: SessionAutosave, options: dict[str, Any]) -> Session:
    """The session as it was kept, but for what the command line says; tells if it has to be read again."""
    autosave.resume(session)
    given = click.get_current_context().get_parameter_source
    if given("system") == ParameterSource.COMMANDLINE:
        session.instructions = options["system"]
    if given("reasoning") == ParameterSource.COMMANDLINE:
        session.set_reasoning_effort(options["reasoning"])
    turns = session.transcript.turns
    line = f"{autosave.name} goes on, after {turns} turn{'s' * (turns != 1)}"
    instructions, _ = session.token_counts
    why = autosave.reread_reason
    if why is None and session.unread > session.prompt_tokens - instructions:
        why = "its instructions, tools or reasoning are others"
    if why:
        line += f"; {why}, so that {session.unread:,} tokens are read again"
    click.echo(printable(line), err=True)
    return session


def _model_of(kept: SessionEntry | None) -> str:
    """The model of a session, or else the one used last."""
    from ..chat.transcript import Transcript

    return str((kept and Transcript.read(kept.transcript).model) or last_used() or "gpt-oss-20b")


@click.command(epilog="Example: git diff | gptoss-mlx generate gpt-oss-20b -p 'Write a commit message.'")
@model_argument(required=False)
@click.option(
    "-p", "--prompt", type=Text(), metavar="TEXT", help="What to say; standard input, if there is any, follows it."
)
@sampling_options
@tool_options
@memory_options
@threads_option
@click.option(
    "--record-routing",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Also write which experts each token went to, for bench --replay-routing.",
)
def generate(model: str | None, prompt: str | None, record_routing: Path | None, **options: Any) -> None:
    """Answer once: the answer alone goes to standard output.

    MODEL is a folder, gpt-oss-20b, gpt-oss-120b, or a hub id; without it, the one used last.
    """
    sys.stdin.reconfigure(encoding="utf-8", errors="replace")
    begun = _piped(1)
    if not (prompt or begun):
        raise NOTHING_TO_ANSWER
    more = _tools(options) | {"approve": _approval(options["yes"])}
    if record_routing and not record_routing.parent.is_dir():
        raise click.UsageError(f"--record-routing: there is no folder {record_routing.parent}")
    with (
        closing(_session(load_model(model or _model_of(None), options), options, **more)) as session,
        _recorded(session.model, record_routing) if record_routing else nullcontext(),
    ):
        _generate(session, _question(prompt, begun, session.longest_text))


@contextmanager
def _recorded(model: Model, file: Path) -> Iterator[None]:
    """Write to `file`, however the block ends, where its tokens went."""
    from ..bench.routing import recording

    with recording(model) as recorder:
        try:
            yield
        finally:
            recorder.trace().save(file)


def _question(prompt: str | None, begun: str, most: int) -> str:
    """The prompt, and behind it what is piped in, which has `begun`: as is, and cut, where it has more than `most`
    characters, for which no context has room."""
    piped = begun and begun + _piped(most)
    text = "\n\n".join(part for part in (prompt, piped if len(piped) > most else piped.strip()) if part)
    if not text:
        raise NOTHING_TO_ANSWER
    return text


def _piped(most: int) -> str:
    """At most so many characters of standard input, if it is not a person's."""
    if sys.stdin.isatty():
        return ""
    try:
        return sys.stdin.read(most)
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
    from ..harmony.parse import Content
    from ..terminal.progress_bars import prefill_progress

    written = ""
    with prefill_progress() as progress:
        for event in session.send(text, on_prefill=progress):
            if isinstance(event, Content):
                apart = "\n\n" if event.begins and written else ""
                written = event.text
                print_text(apart + written)
    if written and not written.endswith("\n"):
        click.echo()
    if repeated := session.stats[-1].repeated:
        raise GptOssError(
            f"the model was repeating {repeated}, and was stopped: try --repetition-penalty 1.1, or another --seed"
        )
    if not session.stats[-1].finished:
        state = "broke off" if written else "has no final part"
        raise GptOssError(f"the answer {state}: raise --max-tokens or --context, or lower --reasoning")


@click.command(epilog="Example: gptoss-mlx demo")
def demo() -> None:
    """Convert the small embedded model, ask it three questions, and stay in the chat."""
    import shutil

    from ..demo import CHECKPOINT, FUNCTIONS, QUESTIONS
    from ..terminal.loop import ask, run

    folder = home() / "demo"
    shutil.rmtree(folder, ignore_errors=True)
    print_report(convert_with_progress(str(CHECKPOINT), folder))
    options = {"system": None, "reasoning": "medium", "max_tokens": 400, "max_reasoning": None}
    options |= dict.fromkeys(("memory", "context", "kv_bits", "threads"))
    greedy = dict.fromkeys(("top_p", "top_k", "min_p", "repetition_penalty", "seed")) | {"temperature": 0.0}
    session = _session(load_model(str(folder), options), options | greedy, functions=FUNCTIONS)
    for question in QUESTIONS:
        ask(session, question, show_reasoning=True)
        session.reset()
    if sys.stdin.isatty() and sys.stdout.isatty():
        run(session, show_reasoning=True, history=home() / "history")
    warn_without_kernels()


def _tools(options: dict[str, Any]) -> dict[str, Any]:
    """What `Session` takes of the tool options. What is wrong with them shows before a model is loaded."""
    made: dict[str, Any] = {"functions": [], "builtins": []}
    if options["json_schema"]:
        from ..engine.json_grammar import load_schema

        made["response_schema"] = load_schema(options["json_schema"])
    if options["tools"]:
        from ..tools.commands import load_tools

        made["functions"] = load_tools(options["tools"])
    if options["browse"]:
        from ..tools.browser import Browser

        made["builtins"].append(Browser(options["browse"]))
    if options["python"] or options["unsafe_python"]:
        from ..tools.python import PythonTool

        made["builtins"].append(PythonTool(unsafe=options["unsafe_python"]))
    return made


def _session(model: Model, options: dict[str, Any], **more: Any) -> Session:
    from ..chat.session import Session

    return Session(
        model,
        instructions=options["system"],
        reasoning_effort=options["reasoning"],
        sampling=_sampling(options),
        max_tokens=options["max_tokens"],
        max_reasoning=options["max_reasoning"],
        **more,
    )


def _sampling(options: dict[str, Any]) -> Sampling:
    from ..engine.sampling import Sampling

    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")
    return Sampling(**{name: options[name] for name in names if options[name] is not None})


COMMANDS = (chat, generate, demo)
