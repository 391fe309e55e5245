"""Searching all saved sessions, and what a session is named after."""

import os
import time

import pytest

from gptoss_mlx.chat.attached import with_files
from gptoss_mlx.chat.search import search
from gptoss_mlx.chat.transcript import Transcript
from gptoss_mlx.harmony.messages import Message
from gptoss_mlx.terminal.attachments import run_command


def transcript(*messages):
    return Transcript("m", None, "medium", "2026-01-02", messages, tuple((7, 4711) for _ in messages))


def asked(*questions):
    return transcript(*(Message("user", question) for question in questions))


@pytest.fixture
def write(store):
    """Write sessions, the first the latest."""
    store.folder.mkdir()

    def write(**transcripts):
        for age, (name, each) in enumerate(transcripts.items()):
            path = store.folder / f"{name}.json"
            each.write(path)
            os.utime(path, (10**9 - age, 10**9 - age))

    return write


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("ferry", ["boat", "oslo"]),
        ("FERRY nesodden", ["oslo"]),
        ("nine ferry", ["oslo"]),
        ("straße", ["quotes"]),
        ("STRASSE", ["quotes"]),
        ('"C:\\new"', ["quotes"]),
        ("boat", ["boat"]),
        ("wonder", []),
        ("4711", ["locker"]),
        ("degrees", ["oslo"]),
        ("role", []),
        ("ferry locker", []),
    ],
)
def test_all_words_are_found_wherever_they_were_said(store, write, words, names):
    write(
        boat=asked("Is a ferry a ship?"),
        oslo=transcript(
            Message("user", "When does the Ferry leave for Nesodden?"),
            Message("assistant", "I wonder.", "analysis"),
            Message("functions.get_weather", "15 degrees", "commentary", "assistant"),
            Message("assistant", "At nine.", "final"),
        ),
        quotes=asked('What is "C:\\new" in the Straße?'),
        locker=asked("My code is 4711."),
    )
    (store.folder / "damaged.json").write_text("{ ferry")
    assert [found.entry.name for found in search(store, words)] == names


def test_letters_that_another_program_has_escaped(store, write):
    write(cafe=asked("Where is the Café?"))
    path = store.folder / "cafe.json"
    path.write_text(path.read_text().replace("é", "\\u00e9"))
    assert [found.entry.name for found in search(store, "café")] == ["cafe"]


def test_the_line_that_is_shown(store, write):
    write(long=asked("word " * 50 + "needle\n\nin the hay" + " more" * 50), short=asked("A needle."))
    long, short = search(store, "NEEDLE")
    assert long.excerpt.startswith("... word word word word needle in the hay more more")
    assert len(long.excerpt) <= 104
    assert short.excerpt == "A needle."


def fill(write, count):
    body = "It leaves from the quay, as every summer. " * 200
    many = {f"n{number}": asked(f"Number {number}, {body}") for number in range(count)}
    write(**many, needle=asked("The ferry, " + body))


def test_only_what_may_hold_the_words_is_parsed(store, write, monkeypatch):
    parsed, parse = [], Transcript.parse
    monkeypatch.setattr(Transcript, "parse", lambda content, path: parsed.append(path.stem) or parse(content, path))
    fill(write, 50)
    assert [found.entry.name for found in search(store, "ferry 4711")] == []
    assert parsed == []
    assert [found.entry.name for found in search(store, "ferry")] == parsed == ["needle"]


@pytest.mark.timing
def test_a_thousand_sessions_are_searched_quickly(store, write):
    fill(write, 1000)
    started = time.perf_counter()
    assert len(list(search(store, "ferry"))) == 1
    assert time.perf_counter() - started < 1


@pytest.mark.parametrize(
    ("questions", "title"),
    [
        (["  What\nis\tthis? "], "What is this?"),
        ([with_files("Sum up @a.txt", {"a.txt": "one\n\ntwo"})], "Sum up @a.txt"),
        ([with_files("@a.txt @b.txt", {"a.txt": "one", "b.txt": "```\ntwo"})], "@a.txt @b.txt"),
        (["File it:\n\n```\nx\n```"], "File it: ``` x ```"),
        (["word " * 100], ("word " * 12).strip()),
        ([], ""),
    ],
)
def test_a_session_is_named_after_the_question_and_not_after_what_is_attached(questions, title):
    assert asked(*questions).title == title


def test_the_output_of_a_command_is_no_question():
    output = run_command("echo one")
    assert asked(output, "Why one?").title == "Why one?"
    assert asked(output).title.startswith("I ran a command: ``` $ echo one one")
