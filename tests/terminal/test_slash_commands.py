"""What begins with a slash, and what it does to a chat."""

import re
import shutil
import weakref
from dataclasses import replace

import pytest

from gptoss_mlx import Sampling, Session, load
from gptoss_mlx.chat.transcript import Transcript
from gptoss_mlx.errors import GptOssError
from gptoss_mlx.terminal import controller
from gptoss_mlx.terminal.slash_commands import COMMANDS, is_command, run_line
from terminal.talking import Notebook, notes, say


def test_help_has_every_command(chat, capsys):
    said = notes(chat, capsys, "/HELP")
    assert [line.split()[0] for line in said[: len(COMMANDS)]] == list(COMMANDS)
    assert max(map(len, said)) < 100


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/fly", "unknown command /fly: /help lists them all"),
        ("/rety", "unknown command /rety: did you mean /retry?"),
        ("/foo", "unknown command /foo: /help lists them all"),
        ("/quti", "unknown command /quti: did you mean /quit?"),
        ("/rest", "unknown command /rest: /help lists them all"),
        ("/claer", "unknown command /claer: /help lists them all"),
        ("/undoo", "unknown command /undoo: /help lists them all"),
        ("/lod", "unknown command /lod: /help lists them all"),
        ("/new", "new conversation"),
        ("/clear", "new conversation"),
        ("/sessions", "error: there are no sessions yet"),
        ("/sessions oslo", "error: no session holds 'oslo'"),
        ("/load", "usage: /load FILE"),
        ("/undo it", "usage: /undo"),
        ("/export talk.txt", "usage: /export FILE.md|FILE.json"),
        ("/copy it", "usage: /copy [code]"),
        ("/reasoning extreme", "usage: /reasoning [none|low|medium|high|show|hide]"),
        ("/reasoning", "reasoning effort: medium"),
        ("/load nowhere/nothing", "error: cannot read nowhere/nothing: No such file or directory"),
        ("/save talk.json", "error: nothing has been said yet"),
        ("/export talk.md", "error: nothing has been said yet"),
        ("/export talk.json", "error: nothing has been said yet"),
        ("/system", "no instructions"),
        ("/copy", "error: there is no answer yet"),
        ("/retry", "error: nothing has been asked yet"),
        ("/edit", "error: nothing has been asked yet"),
        ("/continue", "error: the last answer is complete: there is nothing to go on with"),
        ("/model other", "error: this chat cannot load another model"),
        ("/load \x1b[2J", "error: cannot read \\x1b[2J: No such file or directory"),
        ("/load ~nobody-is-so/x", "error: cannot read ~nobody-is-so/x: No such file or directory"),
    ],
)
def test_what_a_command_says(chat, capsys, line, said):
    assert notes(chat, capsys, line) == [said]


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("/help", True),
        ("/?", True),
        ("/??", False),
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


@pytest.mark.parametrize("line", ["/reset", "/system Be brief.", "/load {file}", "/model {model}"])
def test_what_tools_hold_and_may_do_ends_with_the_conversation(chat, capsys, tmp_path, demo_folder, line):
    chat.session.set_reasoning_effort("none")
    say(chat, "What is 12 + 30?")
    notes(chat, capsys, f"/save {tmp_path}/a.json")
    notebook = Notebook()
    chat.load = lambda name: Session(load(name), builtins=[notebook])
    chat.use(Session(chat.session.model, builtins=[notebook]))
    chat._allowed.add("python")
    notes(chat, capsys, line.format(file=tmp_path / "a.json", model=demo_folder))
    assert notebook.closed == 1
    assert not chat._allowed


def test_questions_taken_back_and_asked_again(chat, capsys):
    say(chat, "What is 12 + 30?")
    say(chat, "What is 40 - 7?")
    assert notes(chat, capsys, "/undo") == ["removed: What is 40 - 7?"]
    run_line(chat, "/retry")
    assert capsys.readouterr().out == "12 + 30 = 42\n"
    run_line(chat, "/edit")
    assert (chat.draft, chat.session.messages) == ("What is 12 + 30?", ())


def test_effort(chat, capsys):
    again = "; the next turn reads the conversation again"
    assert notes(chat, capsys, "/reasoning low") == ["reasoning effort: low"]
    say(chat, "What is 12 + 30?")
    lines = ["/reasoning none", "/reasoning low", "/reasoning high", "/reasoning high"]
    assert notes(chat, capsys, *lines) == [
        "reasoning effort: none",
        "reasoning effort: low",
        "reasoning effort: high" + again,
        "reasoning effort: high",
    ]


TEMPERATURE = "error: temperature takes a number of 0 or more; 0 always takes the likeliest token: not "
SET = {
    "/set temperature 0.7": "temperature  0.7",
    "/set top_p 0.9": "top-p  0.9",
    "/set min-p .05": "min-p  0.05",
    "/set TOP-K 40": "top-k  40",
    "/set seed 7": "seed  7",
    "/set seed none": "seed  another one each time",
    "/set max-tokens 9": "max-tokens  9",
    "/set temperature": "temperature  0",
    "/set temperature warm": TEMPERATURE + "'warm'",
    "/set temperature nan": TEMPERATURE + "'nan'",
    "/set temperature none": TEMPERATURE + "'none'",
    "/set top-p 0": "error: top-p takes a number above 0 and at most 1: not '0'",
    "/set min-p 2": "error: min-p takes a number from 0 to 1: not '2'",
    "/set top-k 1.5": "error: top-k takes a whole number of 0 or more; 0 keeps all tokens: not '1.5'",
    "/set seed -1": "error: seed takes a whole number from 0 to 2^64 - 1, or none: not '-1'",
    "/set max-tokens 0": "error: max-tokens takes a whole number of 1 or more, or none: not '0'",
    "/set top-p 0.9 0.8": "usage: /set [NAME VALUE]",
    "/set heat 1": "error: there is no setting 'heat': temperature, top-p, top-k, min-p, seed, max-tokens can be set",
}


@pytest.mark.parametrize("line", SET)
def test_what_set_says(chat, capsys, line):
    before = chat.session.sampling, chat.session.max_tokens
    assert notes(chat, capsys, line) == [SET[line]]
    if SET[line].startswith(("error", "usage")):
        assert (chat.session.sampling, chat.session.max_tokens) == before


def test_what_is_set_holds_from_the_next_answer_on_and_with_another_model(chat, capsys, demo_folder):
    assert notes(chat, capsys, "/set") == [
        "temperature  0",
        "top-p        1.0",
        "top-k        0",
        "min-p        0.0",
        "seed         another one each time",
        "max-tokens   until the context is full",
    ]
    chat.load = lambda name: Session(load(name))
    chat.session.set_reasoning_effort("none")
    notes(chat, capsys, "/set max-tokens 3", "/set seed 5", f"/model {demo_folder}")
    assert chat.session.sampling == Sampling(temperature=0, seed=5)
    say(chat, "What is 12 + 30?")
    assert "(stopped at --max-tokens" in capsys.readouterr().err
    notes(chat, capsys, "/set max-tokens none")
    run_line(chat, "/retry")
    assert chat.session.stats[-1].finished


@pytest.mark.parametrize("line", ["/bye", "/quit", "/q", "/Exit"])
def test_ways_to_leave(chat, line):
    run_line(chat, line)
    assert chat.over


def test_a_question_mark_is_help(chat, capsys):
    assert notes(chat, capsys, "/?") == notes(chat, capsys, "/help")


def test_help_and_context_in_a_narrow_window(chat, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    say(chat, "What is the weather in Bermi?")
    assert notes(chat, capsys, "/help")[:2] == ["/help", "  show this list (also /?)"]
    *rows, _ = notes(chat, capsys, "/context")
    assert all(len(row) < 40 and row.endswith(" tokens") for row in rows)


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
    assert notes(chat, capsys, "/reset", f"/load {tmp_path}/a.json")[1] == f"loaded 3 messages from {tmp_path}/a.json"
    say(chat, "What is my locker code?")
    assert capsys.readouterr().out == "Your locker code is 4711.\n"


@pytest.mark.parametrize("command", ["/save", "/export"])
@pytest.mark.parametrize("reply", [None, "n", "y"])
def test_a_file_is_replaced_only_if_somebody_agrees(chat, capsys, monkeypatch, tmp_path, command, reply):
    path = tmp_path / "notes.json"
    path.write_text("mine")
    chat.session.set_reasoning_effort("none")
    say(chat, "What is 12 + 30?")
    chat.is_asked = reply is not None
    monkeypatch.setattr(controller, "reply", lambda question, letters: reply)
    said = notes(chat, capsys, f"{command} {path}")
    if reply == "y":
        assert Transcript.read(path).messages == chat.session.messages
    else:
        assert said == [f"error: {path} exists and was not replaced: choose another name"]
        assert path.read_text() == "mine"


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
    assert "switched to model; the next turn reads" in notes(chat, capsys, f"/model {demo_folder}")[0]
    assert notes(chat, capsys, f"/model {endless_folder}") == ["error: out of memory"]
    assert loaded == [str(demo_folder), str(endless_folder), str(demo_folder)]
    say(chat, "What is my locker code?")
    assert capsys.readouterr().out == "Your locker code is 4711.\n"
    assert not chat.over


def test_another_model_by_its_name_and_tag(chat, capsys, demo_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("GPTOSS_MLX_HOME", str(tmp_path))
    q8, _ = (shutil.copytree(demo_folder, tmp_path / f"openai--gpt-oss-20b{tag}") for tag in ("--q8", ""))
    chat.load = lambda name: Session(load(name))
    assert notes(chat, capsys, "/model gpt-oss:20b:q9")[0].startswith("error: there is no model 'gpt-oss:20b:q9'")
    notes(chat, capsys, "/model gpt-oss-20b:q8")
    assert chat.session.model.path == q8


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
    chat.session.set_reasoning_effort("none")
    say(chat, "What is 12 + 30?")
    transcript = chat.session.transcript
    messages = (*transcript.messages[:-1], replace(transcript.messages[-1], content=answer))
    chat.session.restore(replace(transcript, messages=messages))
    said = notes(chat, capsys, "/copy code")
    if code is None:
        assert said == ["error: the last answer has no code block"]
    else:
        assert said == [f"copied {len(code)} characters with wl-copy"]
        assert (tmp_path / "clipboard").read_text() == code
