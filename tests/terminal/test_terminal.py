"""The chat through pipes and with every socket closed, and what it shows and keeps; how it looks, test_screens says."""

import os
import signal
import subprocess
import sys

import pytest

import zygote
from gptoss_mlx import Sampling, Session, load
from gptoss_mlx.chat.turn import TurnStats
from gptoss_mlx.cli.chat import _generate
from gptoss_mlx.errors import GptOssError
from gptoss_mlx.harmony.messages import Tool
from gptoss_mlx.harmony.parse import Content, Preamble, Reasoning, Stop, ToolCall
from gptoss_mlx.memory.plan import EngineConfig
from gptoss_mlx.terminal import controller, loop
from gptoss_mlx.terminal.controller import Chat
from gptoss_mlx.terminal.loop import converse
from gptoss_mlx.terminal.screen import PlainScreen
from gptoss_mlx.terminal.slash_commands import run_line
from gptoss_mlx.tools.toolbox import Function, Toolbox
from terminal.talking import Lines, Notebook, asked, notes, replaced, say

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


def test_an_answer_that_nobody_reads(environment, demo_folder, tmp_path):
    (tmp_path / "questions").write_text("What is 12 + 30?\n" * 3)
    reader, writer = os.pipe()
    os.close(reader)
    words = ["-m", "gptoss_mlx", "chat", str(demo_folder), *GREEDY]
    with open(tmp_path / "questions") as questions, open(tmp_path / "errors", "w") as errors:
        run = zygote.shared().start(words, environment, [questions.fileno(), writer, errors.fileno()])
    os.close(writer)
    run.wait()
    told = (tmp_path / "errors").read_text()
    assert "Traceback" not in told
    assert "Exception" not in told


def test_a_terminal_without_unicode(run, endless_folder):
    options = ["--max-tokens", "40", "--show-reasoning"]
    done = run("chat", endless_folder, *GREEDY, *options, stdin="Hello\n", PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert (done.stdout + done.stderr).isascii()


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


@pytest.mark.parametrize("word", ["exit", "Quit "])
def test_a_word_alone_leaves_where_a_person_types_it(chat, capsys, word):
    chat.session.set_reasoning_effort("none")
    converse(chat, Lines(word))
    assert (chat.over, asked(chat)) == (False, [word])
    chat.is_asked = True
    converse(chat, Lines(f"{word} now", word, "never read"))
    assert (chat.over, asked(chat)) == (True, [word, f"{word} now"])


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
        ({"max_tokens": 9}, "(stopped at --max-tokens; /continue resumes)"),
        (
            {},
            "(stopped: the context is full; /undo removes the last question, /reset clears the chat, "
            "and `gptoss-mlx chat --when-full drop` drops the oldest turns)",
        ),
        (
            {"drop_when_full": True},
            "(stopped: the context is full; /undo removes the last question, /reset clears the chat)",
        ),
    ],
)
def test_why_an_answer_broke_off(endless_folder, capsys, options, said):
    model = load(endless_folder, EngineConfig(300, 16, 64))
    chat = Chat(Session(model, sampling=Sampling(temperature=0), **options), PlainScreen(show_reasoning=None))
    converse(chat, Lines("Hello", "/continue"))
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("(", "error"))]
    assert notes[0] == said
    assert notes[1].startswith("(stopped at --max-tokens" if "max_tokens" in options else "error: ")


def test_an_answer_that_goes_on_when_turns_are_dropped(endless_folder, capsys):
    model = load(endless_folder, EngineConfig(500, 16, 64))
    session = Session(model, sampling=Sampling(temperature=0), max_tokens=9, drop_when_full=True)
    chat = Chat(session, PlainScreen(show_reasoning=None))
    converse(chat, Lines("Hello"))
    session.max_tokens = None
    converse(chat, Lines("Hello again"))
    assert "(stopped: the context is full; /continue drops the oldest turns" in capsys.readouterr().err
    converse(chat, Lines("/continue"))
    said = capsys.readouterr().err
    assert "oldest messages were dropped" in said
    assert "error" not in said


def test_a_message_with_a_slash(run, demo_folder, tmp_path):
    done = run("chat", demo_folder, *GREEDY, stdin=f"//help me\n/save {tmp_path}/talk.json\n")
    assert '"content": "/help me"' in (tmp_path / "talk.json").read_text()
    assert "/retry" not in done.stderr


def test_a_session_is_kept_when_it_is_asked_and_when_it_is_answered(chat, capsys):
    say(chat, "What is 12 + 30?")
    assert chat.autosave.told == [(False, 1), (True, 3)]
    assert notes(chat, capsys, "/save", "/save sums", "/save") == ["saved as talk", "saved as sums", "saved as sums"]
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


def test_a_session_that_is_stopped_is_kept_and_goes_on(chat, capsys, monkeypatch):
    def stop_at_the_answer(text):
        os.kill(os.getpid(), signal.SIGINT)
        print(text, end="")

    with monkeypatch.context() as patches:
        patches.setattr(chat.screen, "content", stop_at_the_answer)
        say(chat, "What is 12 + 30?")
    assert capsys.readouterr() == ("1", "(stopped; /continue resumes)\n")
    assert chat.autosave.told == [(False, 1), (True, 2)]
    run_line(chat, "/continue")
    assert chat.session.messages[-1].content == "12 + 30 = 42"


def test_a_disk_that_is_full_is_told_once(chat, capsys, monkeypatch):
    def full(*args, **options):
        raise GptOssError("cannot write talk.json: No space left on device")

    monkeypatch.setattr(chat.autosave, "save", full)
    say(chat, "What is 12 + 30?")
    say(chat, "What is 12 + 30?")
    assert capsys.readouterr() == (
        "12 + 30 = 42\n" * 2,
        "(this session is not saved: cannot write talk.json: No space left on device)\n",
    )


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


def test_lines_behind_carriage_returns_are_counted_and_shown(chat, capsys, monkeypatch):
    monkeypatch.setattr(controller, "reply", lambda question, letters: print(question) or "n")
    chat.is_asked = True
    assert not chat._approve(ToolCall("python", ""), "a = 1 #\rb = 2\rc = 3")
    said = capsys.readouterr()
    assert said.err == "calls python:\n    a = 1 #\\r\n    b = 2\\r\n    c = 3\n"
    assert said.out.startswith("run these 3 lines?")
