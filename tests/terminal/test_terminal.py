"""The chat through pipes and with every socket closed, and what its commands do; how it looks, test_screens says."""

import io
import os
import re
import signal
import subprocess
import sys
import time
import weakref
from dataclasses import replace
from functools import partial

import pytest
from rich.console import Console
from rich.text import Text

from gptoss_mlx import Sampling, Session, load
from gptoss_mlx.chat.transcript import Transcript
from gptoss_mlx.chat.turn import TurnStats
from gptoss_mlx.cli.chat import _generate
from gptoss_mlx.demo import FUNCTIONS
from gptoss_mlx.errors import GptOssError
from gptoss_mlx.harmony.messages import Tool
from gptoss_mlx.harmony.parse import Content, Preamble, Reasoning, Stop, ToolCall
from gptoss_mlx.memory.plan import EngineConfig
from gptoss_mlx.terminal import controller, loop, progress_bars
from gptoss_mlx.terminal.controller import Chat
from gptoss_mlx.terminal.loop import converse
from gptoss_mlx.terminal.screen import (
    PlainScreen,
    Region,
    call_text,
    finished_blocks,
    shortened,
    with_all_visible,
    without_controls,
)
from gptoss_mlx.terminal.slash_commands import COMMANDS, is_command, run_line
from gptoss_mlx.tools.toolbox import Function, Toolbox

GREEDY = ["--temperature", "0"]
# Every way to a network, and every library on the path that could take one.
NO_SOCKETS = """
import socket, sys
def refuse(*args, **kwargs):
    raise SystemExit("a socket was opened")
socket.socket.connect = socket.socket.connect_ex = socket.create_connection = socket.getaddrinfo = refuse
sys.argv = ["gptoss-mlx", *sys.argv[1:]]
from gptoss_mlx.cli import cli
cli(sys.argv[1:], standalone_mode=False)
print(*sorted({"huggingface_hub", "requests", "httpx", "mlx_lm", "transformers"} & set(sys.modules)), "imported")
"""


def test_piped(run, demo_folder):
    done = run("chat", demo_folder, *GREEDY, stdin="What is 12 + 30?\n\nWhat is 40 - 7?\n")
    assert done.returncode == 0
    assert done.stdout == "12 + 30 = 42\n40 - 7 = 33\n"
    assert "\x1b" not in done.stdout + done.stderr


def test_piped_reasoning_goes_to_standard_error(run, demo_folder):
    done = run("chat", demo_folder, *GREEDY, "--show-reasoning", stdin="What is 12 + 30?\n")
    assert done.stdout == "12 + 30 = 42\n"
    assert "2+0+0=02" in done.stderr


def test_no_network(environment, demo_folder):
    args = [sys.executable, "-c", NO_SOCKETS, "chat", str(demo_folder), *GREEDY]
    done = subprocess.run(args, input="What is 12 + 30?\n", capture_output=True, text=True, env=environment, timeout=60)
    assert done.stdout == "12 + 30 = 42\nimported\n"


def test_a_pipe_refuses_what_nobody_can_allow(chat, capsys):
    chat.session = session = replaced(chat, asks=True)
    chat.use(session)
    say(chat, "What is the weather in Bermi?")
    assert "--yes was not given" in capsys.readouterr().err
    assert "did not allow" in session.messages[3].content
    chat.yes = True
    say(chat, "What is the weather in Bermi?")
    assert capsys.readouterr().out == "It is 15 degrees and sunny in Bermi.\n"


def test_an_answer_that_nobody_reads(command, environment, demo_folder):
    questions = b"What is 12 + 30?\n" * 3
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*command, "chat", demo_folder, *GREEDY],
        input=questions,
        stdout=writer,
        stderr=subprocess.PIPE,
        env=environment,
    )
    os.close(writer)
    assert b"Traceback" not in done.stderr
    assert b"Exception" not in done.stderr


def test_a_terminal_without_unicode(run, endless_folder):
    options = ["--max-tokens", "40", "--show-reasoning"]
    done = run("chat", endless_folder, *GREEDY, *options, stdin="Hello\n", PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert (done.stdout + done.stderr).isascii()


@pytest.fixture(scope="module")
def model(demo_folder):
    return load(demo_folder)


class SessionAutosave:
    """Writes down what it is told."""

    name = "talk"

    def __init__(self):
        self.told = []

    def keep(self, session, *, kv):
        self.told.append((kv, len(session.messages)))

    def rename(self, name):
        self.name = name

    def leave(self):
        self.told.append("leave")


@pytest.fixture
def chat(model):
    session = Session(model, functions=FUNCTIONS, sampling=Sampling(temperature=0))
    return Chat(session, PlainScreen(show_reasoning=None), SessionAutosave())


def replaced(chat, **changes):
    functions = [replace(function, **changes) for function in FUNCTIONS]
    return Session(chat.session.model, functions=functions, sampling=Sampling(temperature=0))


def say(chat, text):
    chat.answer(partial(chat.session.send, text))


def notes(chat, capsys, *lines):
    """What is said to these lines."""
    capsys.readouterr()
    for line in lines:
        try:
            run_line(chat, line)
        except GptOssError as error:
            chat.screen.note(f"error: {error}")
    return capsys.readouterr().err.splitlines()


def test_help_has_every_command(chat, capsys):
    said = notes(chat, capsys, "/HELP")
    assert [line.split()[0] for line in said[: len(COMMANDS)]] == list(COMMANDS)
    assert max(map(len, said)) < 100


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/fly", "there is no command /fly: /help lists them"),
        ("/rety", "there is no command /rety: is it /retry?"),
        ("/foo", "there is no command /foo: /help lists them"),
        ("/load", "usage: /load FILE"),
        ("/undo it", "usage: /undo"),
        ("/export talk.txt", "usage: /export FILE.md|FILE.json"),
        ("/copy it", "usage: /copy [code]"),
        ("/reasoning extreme", "usage: /reasoning [none|low|medium|high|show|hide]"),
        ("/reasoning", "reasoning medium"),
        ("/load nowhere/nothing", "error: cannot read nowhere/nothing: No such file or directory"),
        ("/save talk.json", "error: nothing has been said yet"),
        ("/export talk.md", "error: nothing has been said yet"),
        ("/export talk.json", "error: nothing has been said yet"),
        ("/system", "no instructions"),
        ("/copy", "error: nothing has been answered yet"),
        ("/retry", "error: nothing has been asked yet"),
        ("/edit", "error: nothing has been asked yet"),
        ("/continue", "error: the last answer is complete: there is nothing to go on with"),
        ("/model other", "error: no other model can be loaded here"),
        ("/load \x1b[2J", "error: cannot read \\x1b[2J: No such file or directory"),
    ],
)
def test_what_a_command_says(chat, capsys, line, said):
    assert notes(chat, capsys, line) == [said]


class Lines:
    """What is typed, a text after the other."""

    def __init__(self, *texts):
        self.texts, self.seen = list(texts), []

    def read(self, status, draft=""):
        self.seen.append((status, draft))
        return self.texts.pop(0) if self.texts else None


def asked(chat):
    return [message.content for message in chat.session.messages if message.role == "user"]


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("/help", True),
        ("/HELP me ", True),
        ("/fly\n", True),
        ("/usr/lib/x.py:12: error", False),
        ("/save\nall", False),
        ("/", False),
        ("//help", False),
        (" /help", False),
    ],
)
def test_what_is_a_command(text, is_one):
    assert is_command(text) == is_one


TWO_OF_EACH = [
    *(Reasoning("I ", True), Reasoning("think.", False), Reasoning("I am.", True)),
    *(Preamble("First.", True), Preamble("Then.", True), Content("So", True), Content(" it is.", False)),
    Stop("return"),
]


def test_messages_are_set_apart(chat, capsys):
    chat.screen = PlainScreen(show_reasoning=True)
    chat._show(iter(TWO_OF_EACH))
    chat.screen.end()
    shown = capsys.readouterr()
    assert shown.out == "First.\n\nThen.\n\nSo it is.\n"
    assert shown.err == "I think.\n\nI am.\n"
    assert "\n".join(notes(chat, capsys, "/reasoning show")) == "I think.\n\nI am."


def test_messages_are_set_apart_behind_words_and_reasoning(chat, capsys):
    chat.screen = PlainScreen(show_reasoning=None, words=True)
    chat._show(iter([Preamble("First.", True), Reasoning("Hm.", True), Content("So.", True)]))
    chat.screen.end()
    assert capsys.readouterr().out == "answer: First.\nanswer: So.\n"
    chat.screen = PlainScreen(show_reasoning=None)
    chat._show(iter([Preamble("First.", True), Reasoning("Hm.", True), Content("So.", True)]))
    chat.screen.end()
    assert capsys.readouterr().out == "First.\n\nSo.\n"


def test_messages_are_set_apart_by_generate(model, monkeypatch, capsys):
    session = Session(model)
    session.stats.append(TurnStats(1, 1, 0, 0.0, 1.0, 1, True))
    monkeypatch.setattr(
        session,
        "send",
        lambda text, on_prefill: iter([Content("3", True), Content("64", False), *[Content("4", True)]]),
    )
    _generate(session, "Hello")
    assert capsys.readouterr().out == "364\n\n4\n"


def test_what_is_pasted_is_sent_as_it_is(chat, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(loop, "run_command", lambda command: pytest.fail(command))
    pasted = [
        "!touch made\nmore",
        "/usr/lib/x.py:12: error",
        "// a comment\n/* another */",
        "/help\nme",
        "!",
    ]
    chat.is_asked = True
    converse(chat, Lines(*pasted, "//help me"))
    assert asked(chat) == [*pasted, "/help me"]


def test_edit_gives_back_what_was_typed(chat, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("one\n")
    chat.is_asked = True
    messages = Lines("//see @a.txt", "/edit")
    converse(chat, messages)
    assert messages.seen[-1][1] == "//see @a.txt"
    say(chat, "not typed")
    run_line(chat, "/edit")
    assert chat.draft == "not typed"


def test_the_status_is_what_the_next_prompt_takes_and_begins_with_the_name(chat, capsys):
    messages = Lines("What is 12 + 30?")
    converse(chat, messages)
    head, counts = chat.session.token_counts
    assert messages.seen[0][0] == f"talk · {head}/131,072 tokens (0%) · model"
    assert messages.seen[1][0].startswith(f"talk · {head + sum(counts)}/131,072 tokens (0%) · model · ")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_tokens": 9}, "(broke off at --max-tokens; /continue goes on)"),
        (
            {},
            "(broke off at the end of the context: /undo takes the last question back, /reset starts anew, "
            "and chat --when-full drop would go on without the oldest turns)",
        ),
        (
            {"drop_when_full": True},
            "(broke off at the end of the context: /undo takes the last question back, /reset starts anew)",
        ),
    ],
)
def test_why_an_answer_broke_off(endless_folder, capsys, options, said):
    model = load(endless_folder, EngineConfig(300, 16, 64))
    chat = Chat(Session(model, sampling=Sampling(temperature=0), **options), PlainScreen(show_reasoning=None))
    converse(chat, Lines("Hello", "/continue"))
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("(", "error"))]
    assert notes[0] == said
    assert notes[1].startswith("(broke off at --max-tokens" if "max_tokens" in options else "error: ")


def test_an_answer_that_goes_on_when_turns_are_dropped(endless_folder, capsys):
    model = load(endless_folder, EngineConfig(500, 16, 64))
    session = Session(model, sampling=Sampling(temperature=0), max_tokens=9, drop_when_full=True)
    chat = Chat(session, PlainScreen(show_reasoning=None))
    converse(chat, Lines("Hello"))
    session.max_tokens = None
    converse(chat, Lines("Hello again"))
    assert "(broke off at the end of the context; /continue drops the oldest turns" in capsys.readouterr().err
    converse(chat, Lines("/continue"))
    said = capsys.readouterr().err
    assert "oldest messages were dropped" in said
    assert "error" not in said


class Notebook:
    """A built-in tool that counts how often it was closed."""

    name, asks, closed = "python", True, 0

    def preview(self, function, text):
        return text.upper()

    def run(self, function, text):
        return "ran"

    def close(self):
        self.closed += 1


@pytest.mark.parametrize("line", ["/reset", "/system Be brief.", "/load {file}", "/model {model}"])
def test_what_tools_hold_and_may_do_ends_with_the_conversation(chat, capsys, tmp_path, demo_folder, line):
    say(chat, "What is 12 + 30?")
    notes(chat, capsys, f"/save {tmp_path}/a.json")
    notebook = Notebook()
    chat.load = lambda name: Session(load(name), builtins=[notebook])
    chat.use(Session(chat.session.model, builtins=[notebook]))
    chat._allowed.add("python")
    notes(chat, capsys, line.format(file=tmp_path / "a.json", model=demo_folder))
    assert notebook.closed == 1
    assert not chat._allowed


def test_a_message_with_a_slash(run, demo_folder, tmp_path):
    done = run("chat", demo_folder, *GREEDY, stdin=f"//help me\n/save {tmp_path}/talk.json\n")
    assert '"content": "/help me"' in (tmp_path / "talk.json").read_text()
    assert "/retry" not in done.stderr


def test_questions_taken_back_and_asked_again(chat, capsys):
    say(chat, "What is 12 + 30?")
    say(chat, "What is 40 - 7?")
    assert notes(chat, capsys, "/undo") == ["taken back: What is 40 - 7?"]
    run_line(chat, "/retry")
    assert capsys.readouterr().out == "12 + 30 = 42\n"
    run_line(chat, "/edit")
    assert (chat.draft, chat.session.messages) == ("What is 12 + 30?", ())


def test_effort(chat, capsys):
    again = ": the next turn reads the conversation again"
    assert notes(chat, capsys, "/reasoning low") == ["reasoning low"]
    say(chat, "What is 12 + 30?")
    lines = ["/reasoning none", "/reasoning low", "/reasoning high", "/reasoning high"]
    assert notes(chat, capsys, *lines) == [
        "reasoning none",
        "reasoning low",
        "reasoning high" + again,
        "reasoning high",
    ]


def test_reasoning_is_shown_or_folded(chat, capsys):
    say(chat, "What is 12 + 30?")
    assert capsys.readouterr().err == ""
    assert "2+0+0=02" in notes(chat, capsys, "/reasoning show")[0]
    say(chat, "What is 12 + 30?")
    assert "2+0+0=02" in capsys.readouterr().err
    run_line(chat, "/reasoning hide")
    capsys.readouterr()
    say(chat, "What is 12 + 30?")
    assert capsys.readouterr().err == ""


def test_files(chat, capsys, tmp_path):
    say(chat, "My locker code is 4711.")
    said = notes(chat, capsys, f"/save {tmp_path}/a.json", f"/export {tmp_path}/b.json", f"/export {tmp_path}/c.md")
    assert said == [f"saved to {tmp_path}/a.json", f"written to {tmp_path}/b.json", f"written to {tmp_path}/c.md"]
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert "## My locker code is 4711." in (tmp_path / "c.md").read_text()
    said = notes(chat, capsys, f"/save {tmp_path}/nowhere/talk.json")
    assert said == [f"error: cannot write {tmp_path}/nowhere/talk.json: No such file or directory"]
    assert notes(chat, capsys, "/reset", f"/load {tmp_path}/a.json")[1] == f"3 messages from {tmp_path}/a.json"
    say(chat, "What is my locker code?")
    assert capsys.readouterr().out == "Your locker code is 4711.\n"


@pytest.mark.parametrize("command", ["/save", "/export"])
@pytest.mark.parametrize("reply", [None, "n", "y"])
def test_a_file_is_replaced_only_if_somebody_agrees(chat, capsys, monkeypatch, tmp_path, command, reply):
    path = tmp_path / "notes.json"
    path.write_text("mine")
    say(chat, "What is 12 + 30?")
    chat.is_asked = reply is not None
    monkeypatch.setattr(controller, "reply", lambda question, letters: reply)
    said = notes(chat, capsys, f"{command} {path}")
    if reply == "y":
        assert Transcript.read(path).messages == chat.session.messages
    else:
        assert said == [f"error: {path} exists already, and stays as it is: choose another name"]
        assert path.read_text() == "mine"


def test_a_session_is_kept_when_it_is_asked_and_when_it_is_answered(chat, capsys):
    say(chat, "What is 12 + 30?")
    assert chat.autosave.told == [(False, 1), (True, 3)]
    assert notes(chat, capsys, "/save", "/save sums", "/save") == ["kept as talk", "kept as sums", "kept as sums"]
    said = notes(chat, capsys, "/reset", "/system Be brief.", "/system", "/system none", "/system")
    assert said == [
        "new conversation",
        "new conversation with these instructions",
        "Be brief.",
        "new conversation without instructions",
        "no instructions",
    ]
    assert chat.autosave.told[2:] == ["leave"] * 3
    assert chat.session.instructions is None
    chat.autosave.name = None
    assert notes(chat, capsys, "/save", "/save sums") == ["error: nothing has been said yet"] * 2


def test_what_a_command_changes_is_kept(chat, capsys, tmp_path):
    say(chat, "What is 12 + 30?")
    notes(chat, capsys, f"/save {tmp_path}/a.json")
    told = {}
    for line in ("/reasoning low", "/retry", "/reasoning", "/edit", f"/load {tmp_path}/a.json", "/undo"):
        chat.autosave.told.clear()
        notes(chat, capsys, line)
        told[line.partition(" /")[0]] = list(chat.autosave.told)
    assert told == {
        "/reasoning low": [(False, 3)],
        "/retry": [(False, 1), (True, 3)],
        "/reasoning": [(False, 3)],
        "/edit": [(False, 0)],
        "/load": ["leave", (False, 3)],
        "/undo": [(False, 0)],
    }


def test_a_session_that_is_stopped_is_kept_and_goes_on(chat, capsys, monkeypatch):
    def stop_at_the_answer(text):
        os.kill(os.getpid(), signal.SIGINT)
        print(text, end="")

    with monkeypatch.context() as patches:
        patches.setattr(chat.screen, "content", stop_at_the_answer)
        say(chat, "What is 12 + 30?")
    assert capsys.readouterr() == ("1", "(stopped; /continue goes on)\n")
    assert chat.autosave.told == [(False, 1), (True, 2)]
    run_line(chat, "/continue")
    assert chat.session.messages[-1].content == "12 + 30 = 42"


def test_a_disk_that_is_full_is_told_once(chat, capsys, monkeypatch):
    def full(*args, **options):
        raise GptOssError("cannot write talk.json: No space left on device")

    monkeypatch.setattr(chat.autosave, "keep", full)
    say(chat, "What is 12 + 30?")
    say(chat, "What is 12 + 30?")
    assert capsys.readouterr() == (
        "12 + 30 = 42\n" * 2,
        "(this session is not kept: cannot write talk.json: No space left on device)\n",
    )


def test_another_model_goes_on_with_the_conversation(chat, capsys, demo_folder, endless_folder):
    loaded = []

    def load_session(name):
        assert before() is None, "two models at once"
        loaded.append(name)
        if name == str(endless_folder):
            raise GptOssError("out of memory")
        return Session(load(name), sampling=Sampling(temperature=0))

    before = weakref.ref(chat.session)
    chat.load = load_session
    say(chat, "My locker code is 4711.")
    assert notes(chat, capsys, "/model")[0].startswith(f"model in {demo_folder}")
    assert "the next turn reads" in notes(chat, capsys, f"/model {demo_folder}")[0]
    assert notes(chat, capsys, f"/model {endless_folder}") == ["error: out of memory"]
    assert loaded == [str(demo_folder), str(endless_folder), str(demo_folder)]
    say(chat, "What is my locker code?")
    assert capsys.readouterr().out == "Your locker code is 4711.\n"
    assert not chat.over


def test_context_adds_up(chat, capsys):
    say(chat, "What is 12 + 30?")
    say(chat, "What is the weather in Bermi?")
    said = notes(chat, capsys, "/context")
    numbers = [int(re.search(r"([\d,]+) tokens", line)[1].replace(",", "")) for line in said[:-1]]
    assert sum(numbers[:-2]) == numbers[-2] == len(chat.session._ids_so_far())
    assert sum(numbers[-2:]) == chat.session.model.context
    assert re.match(r"KV cache: \d+ tokens in [\d.]+ kB, snapshots: \d+", said[-1])


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("a\n```py\none\n```\nb\n~~~~\ntwo\n```\n~~~~\nc", "two\n```\n"),
        ("```\nopen\n", "open\n"),
        ("``` ``` none", None),
    ],
)
def test_the_last_code_block_is_copied(chat, capsys, monkeypatch, tmp_path, answer, code):
    program = tmp_path / "wl-copy"
    program.write_text(f"#!/bin/sh\ncat > {tmp_path}/clipboard\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    say(chat, "What is 12 + 30?")
    transcript = chat.session.transcript
    messages = (*transcript.messages[:-1], replace(transcript.messages[-1], content=answer))
    chat.session.restore(replace(transcript, messages=messages))
    said = notes(chat, capsys, "/copy code")
    if code is None:
        assert said == ["error: there is no code block in the last answer"]
    else:
        assert said == [f"copied {len(code)} characters through wl-copy"]
        assert (tmp_path / "clipboard").read_text() == code


def test_tools_of_one_name_are_refused():
    function = Function(Tool("python"), lambda: "mine")
    for functions, builtins in ([[function], [Notebook()]], [[function, function], []]):
        with pytest.raises(GptOssError, match="there are two tools named python: rename the function"):
            Toolbox(functions, builtins)
    with pytest.raises(GptOssError, match=r"two tools named python\.x"):
        Toolbox([Function(Tool("python.x"), lambda: "mine")], [Notebook()])
    toolbox, call = Toolbox(builtins=[Notebook()]), ToolCall("python", "x")
    assert (toolbox.asks(call), toolbox.preview(call), toolbox.run(call)) == (True, "X", "ran")
    toolbox, call = Toolbox([function]), ToolCall("python", "{}")
    assert (toolbox.asks(call), toolbox.preview(call), toolbox.run(call)) == (False, "{}", "mine")


def test_control_characters_become_marks():
    assert without_controls("a\x1b[2Jb\x07\u202ec\td\r\n\x9b\ud800") == "a\ufffd[2Jb\ufffd\ufffdc\td\n\ufffd\ufffd"


def test_nothing_hides_in_a_call():
    assert with_all_visible("a\u200b\u00adb\ufeff\U000e0041\u3164\u115f\ufe0f\u2066\u00a0\u2800\x1b\ud800") == (
        r"a\u200b\xadb\ufeff\U000e0041\u3164\u115f\ufe0f\u2066\xa0\u2800\x1b\ud800"
    )
    assert with_all_visible("na\u00efve \U0001f600\r\n\tx") == "na\u00efve \U0001f600\n\tx"
    assert call_text("python", "a = 1 #\rb = 2") == "python:\n    a = 1 #\\r\n    b = 2"


def test_lines_behind_carriage_returns_are_counted_and_shown(chat, capsys, monkeypatch):
    monkeypatch.setattr(controller, "reply", lambda question, letters: print(question) or "n")
    chat.is_asked = True
    assert not chat._approve(ToolCall("python", ""), "a = 1 #\rb = 2\rc = 3")
    said = capsys.readouterr()
    assert said.err == "calls python:\n    a = 1 #\\r\n    b = 2\\r\n    c = 3\n"
    assert said.out.startswith("run these 3 lines?")


def test_a_long_result_is_counted():
    assert shortened("one\n", 10) == "one"
    assert shortened("\n".join("abcdefghijkl"), 10) == "a\nb\nc\nd\n... 8 more lines"
    assert shortened("0123456789\n01234567890", 10) == "0123456789\n012345 ..."


@pytest.mark.parametrize(("wait", "shown"), [(0.0, True), (60.0, False)])
def test_a_long_prompt_shows_how_far_it_was_read(monkeypatch, wait, shown):
    monkeypatch.setattr(progress_bars, "SHOWN_AFTER", wait)
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    reading = progress_bars.PrefillProgress(console)
    reading(0, 10000)
    time.sleep(0.1)
    reading(2500, 10000)
    time.sleep(0.5)
    reading(10000, 10000)
    written = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", console.file.getvalue())
    assert bool(re.search(r"reading \S+ 2,500/10,000 tokens, [\d,]+ tokens/s, 0 s left", written)) == shown


def test_nothing_is_shown_of_a_prompt_where_there_is_no_terminal():
    console = Console(file=io.StringIO())
    progress_bars.PrefillProgress(console)(0, 10)
    assert console.file.getvalue() == ""


def test_drawing_takes_little_of_the_time():
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    region = Region(console)
    started = time.monotonic()
    while time.monotonic() < started + 0.5:
        region.draw(Text("more"))
    assert 1 <= console.file.getvalue().count("more") <= 7


@pytest.mark.parametrize(
    ("text", "done"),
    [
        ("one line", ""),
        ("one\n\ntwo", "one\n\n"),
        ("one\n\n", "one\n\n"),
        ("```\ncode\n\nmore", ""),
        ("```\ncode\n\n```\n\nafter", "```\ncode\n\n```\n\n"),
        ("~~~~\n```\n\n~~~~\n\nafter", "~~~~\n```\n\n~~~~\n\n"),
    ],
)
def test_blocks_that_can_no_longer_change(text, done):
    assert finished_blocks(text) == (done, text[len(done) :])
