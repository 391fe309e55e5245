"""What messages bring along: real files in a folder, and real commands in the user's shell."""

import os
import signal
import sys
import time
from contextlib import suppress

import pytest

import zygote
from gptoss_mlx.errors import GptOssError
from gptoss_mlx.terminal.attachments import KEPT_OUTPUT, MAX_FILE, MAX_MATCHES, Expanded, expand, mention, run_command
from gptoss_mlx.untrusted import open_regular


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The current folder, which is the home folder too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SHELL", "/bin/sh")
    (tmp_path / "notes.txt").write_text("one\ntwo\n")
    (tmp_path / "my notes.txt").write_bytes(b"\xef\xbb\xbfcaf\xc3\xa9\r\n")
    (tmp_path / "docs").mkdir()
    return tmp_path


NOTES = "\n\nFile notes.txt:\n```\none\ntwo\n```"


@pytest.mark.parametrize(
    ("text", "added"),
    [
        ("Sum up @notes.txt", NOTES),
        ("@notes.txt", NOTES),
        ("first\n@notes.txt\nlast", NOTES),
        ("See (or not) @notes.txt, please.", NOTES),
        ("@notes.txt and @notes.txt.", NOTES),
        ('@"notes.txt"?', NOTES),
        ("@~/notes.txt", "\n\nFile ~/notes.txt:\n```\none\ntwo\n```"),
        ('@"my notes.txt"', "\n\nFile my notes.txt:\n```\ncaf\u00e9\n```"),
        ('@notes.txt @"my notes.txt"', f"{NOTES}\n\nFile my notes.txt:\n```\ncaf\u00e9\n```"),
        ("me@notes.txt", ""),
        ("@ notes.txt", ""),
        ("@someone, are you there?", ""),
        ("@dataclass\nclass A: ...", ""),
        ("@\x00/a", ""),
        ("@\x00/*", ""),
        ('@"', ""),
    ],
)
def test_files_follow_the_message(text, added):
    assert expand(text).text == text + added


def test_notes_tell_what_was_added_and_what_was_not_found(folder):
    (folder / "long.txt").write_text("0123456789\n" * 312)
    (folder / "line").write_text("x")
    assert expand('@long.txt @"my notes.txt" @line').notes == [
        "long.txt: 312 lines, 4 kB",
        "my notes.txt: 1 line, 1 kB",
        "line: 1 line, 1 kB",
    ]
    text = '@pytest.fixture @app.route("/") @someone @"no such" @a/b.txt, @pytest.fixture.'
    assert expand(text) == Expanded(
        text, ["sent as text, because there is no such file: pytest.fixture, no such, a/b.txt"]
    )
    text = "@docs/ and @docs"
    assert expand(text) == Expanded(text, ["sent as text, because only files can be attached: docs/, docs"])


@pytest.fixture
def sources(folder):
    for name in ("b.py", "a.py", "deep/c.py", "deep/more/d.py", "my file.py", ".hidden.py", "words.txt"):
        (folder / "src" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "src" / name).write_text(f"{name}\n")
    (folder / "src" / "folder.py").mkdir()
    return folder


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("@src/*.py", ["a.py", "b.py", "my file.py"]),
        ("Sum up @src/?.py, please", ["a.py", "b.py"]),
        ("(see @src/[ab].py)", ["a.py", "b.py"]),
        ("@src/**/*.py", ["a.py", "b.py", "deep/c.py", "deep/more/d.py", "my file.py"]),
        ('@"src/my *.py"', ["my file.py"]),
        ("@~/src/b*", ["b.py"]),
        ("@src/.h*", [".hidden.py"]),
        ("@src/b.py @src/*.py", ["b.py", "a.py", "my file.py"]),
    ],
)
def test_files_of_a_pattern_in_the_order_of_their_names(sources, text, names):
    root = f"{sources}/src" if "~" in text else "src"
    blocks = "".join(f"\n\nFile {root}/{name}:\n```\n{name}\n```" for name in names)
    assert expand(text).text == text + blocks


def test_notes_about_patterns(sources):
    assert expand("@src/*.py @src/words.txt").notes == [
        "src/*.py: 3 files, 3 lines, 1 kB",
        "src/words.txt: 1 line, 1 kB",
    ]
    text = '@src/*.c, @"no such *" @someone? f(@x[0]) @decorator(*args)'
    assert expand(text) == Expanded(text, ["sent as text, because there is no such file: src/*.c, no such *"])
    (sources / "a[1].txt").write_text("one\n")
    assert expand("@a[1].txt").notes == ["a[1].txt: 1 line, 1 kB"]


def test_patterns_have_limits(sources):
    (sources / "src" / "large.txt").write_bytes(b"a" * (MAX_FILE - 5))
    with pytest.raises(GptOssError, match=r"cannot attach src/\*.txt: its 2 files have more than 1,000,000 bytes"):
        expand("@src/*.txt")
    (sources / "src" / "binary.bin").write_bytes(b"\0")
    with pytest.raises(GptOssError, match=r"cannot attach src/binary\.bin: it is not text in UTF-8"):
        expand("@src/*.bin")
    (sources / "many").mkdir()
    for number in range(MAX_MATCHES):
        (sources / "many" / str(number)).touch()
    assert expand("@many/*").notes == ["many/*: 100 files, 0 lines, 0 kB"]
    (sources / "many" / "last").touch()
    with pytest.raises(GptOssError, match=r"cannot attach many/\*: more than 100 files"):
        expand("@many/*")


def test_a_fence_is_longer_than_any_in_the_file(folder):
    (folder / "a.md").write_text("```\n````\n")
    assert expand("@a.md").text == "@a.md\n\nFile a.md:\n`````\n```\n````\n`````"


def test_an_empty_file_is_a_file(folder):
    (folder / "empty").touch()
    assert expand("see @empty") == Expanded("see @empty\n\nFile empty:\n```\n\n```", ["empty: 0 lines, 0 kB"])


def test_what_is_there_and_cannot_be_attached(folder):
    (folder / "binary").write_bytes(b"PK\x03\x04\x00")
    (folder / "latin").write_bytes(b"caf\xe9")
    (folder / "large").write_bytes(b"a" * (MAX_FILE + 1))
    (folder / "largest").write_bytes(b"a" * MAX_FILE)
    (folder / "nowhere").symlink_to("gone")
    os.mkfifo(folder / "fifo")
    for name, why in {
        "binary": "cannot attach binary: it is not text in UTF-8",
        "latin": "cannot attach latin: it is not text in UTF-8",
        "large": "cannot attach large: more than 1,000,000 bytes",
        "/proc/version": "cannot attach /proc/version: it is empty",
        "nowhere": "cannot attach nowhere: a symbolic link that leads nowhere",
        "fifo": "cannot attach fifo: not a regular file",
        "/dev/zero": "cannot attach /dev/zero: not a regular file",
    }.items():
        with pytest.raises(GptOssError) as error:
            expand(f"see @{name}")
        assert str(error.value).startswith(why)
    assert expand("@largest").notes == ["largest: 1 line, 1,000 kB"]


@pytest.mark.parametrize("what", ["fifo", "device"])
def test_a_file_that_is_replaced_between_check_and_opening(folder, monkeypatch, what):
    """By what never answers, or never ends: what was opened counts."""
    status, opened = os.stat, os.open

    def replace():
        (folder / "notes.txt").unlink(missing_ok=True)
        os.mkfifo("notes.txt") if what == "fifo" else (folder / "notes.txt").symlink_to("/dev/zero")

    def replaced_after(path, *arguments, **more):
        found = status(path, *arguments, **more)
        replace()
        return found

    def replaced_before(path, *arguments, **more):
        replace()
        return opened(path, *arguments, **more)

    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", replaced_after)
        patched.setattr(os, "open", replaced_before)
        with pytest.raises(OSError, match="not a regular file"):
            open_regular(folder / "notes.txt")


@pytest.mark.parametrize("name", ["notes.txt", "my notes.txt", "docs/a b"])
def test_what_is_completed_is_understood(folder, name):
    (folder / name).write_text("text")
    assert f"File {name}:" in expand(f"see {mention(name)} please").text


def test_folders_stay_open_for_more():
    assert [mention("docs/"), mention("my docs/"), mention("docs/", quoted=True)] == ["@docs/", '@"my docs/', '@"docs/']


def test_a_command_with_what_it_wrote_and_how_it_ended():
    assert run_command("echo out; echo err >&2; exit 3") == (
        "I ran a command:\n```\n$ echo out; echo err >&2; exit 3\nout\nerr\n```\nIt ended with exit status 3."
    )
    assert run_command("true") == "I ran a command:\n```\n$ true\n```\nIt wrote nothing. It ended with exit status 0."
    assert run_command("kill -9 $$").endswith("It was ended by signal 9.")
    assert run_command("printf 'a\\377```'").startswith(
        "I ran a command:\n````\n$ printf 'a\\377```'\na\ufffd```\n````"
    )
    assert "No terminal" in run_command("cat; (exec 3</dev/tty) 2>/dev/null || echo No terminal")


def test_long_output_is_cut_in_the_middle():
    text = run_command("seq 100000")
    assert KEPT_OUTPUT < len(text) < KEPT_OUTPUT + 200
    assert text.endswith("\n100000\n```\nIt ended with exit status 0.")
    assert "\n[524,895 bytes left out]\n" in text


def test_endless_output_is_ended(monkeypatch):
    monkeypatch.setattr("gptoss_mlx.terminal.attachments.MAX_OUTPUT", 10_000_000)
    text = run_command("yes")
    assert text.endswith("It was ended: it had written more than 10 MB.")
    assert len(text) < KEPT_OUTPUT + 200


@pytest.fixture
def traces(folder):
    """The end for reading of a FIFO named traces: b"" when nobody holds the other one."""
    os.mkfifo("traces")
    descriptor = os.open("traces", os.O_RDONLY | os.O_NONBLOCK)
    yield descriptor
    os.close(descriptor)


def is_read(descriptor, expected):
    """Whether that is what can be read next, within half a minute."""
    for _ in range(3000):
        with suppress(BlockingIOError):
            if (found := os.read(descriptor, 100)) == expected:
                return True
            assert not found
        time.sleep(0.01)
    return False


escaping = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere, `setsid` gets away")


@pytest.mark.parametrize("background", ["sleep 60 &", pytest.param("setsid -f sleep 60", marks=escaping)])
def test_what_a_command_leaves_in_the_background_ends_with_it(traces, background):
    started = time.monotonic()
    assert "status 0" in run_command(f"exec 3>traces; echo here >&3; {background}")
    assert time.monotonic() - started < 50  # it would sleep for 60
    assert is_read(traces, b"here\n")
    assert is_read(traces, b"")


@pytest.mark.parametrize(
    "command",
    [
        *("sleep 60", "trap '' INT; sleep 60", "exec >&- 2>&-; sleep 60; true", "kill -STOP $$"),
        pytest.param("setsid -f sleep 60; sleep 60", marks=escaping),
    ],
)
def test_ctrl_c_ends_a_command_with_all_its_children(traces, environment, command):
    program = f"""
from gptoss_mlx.terminal.attachments import run_command
try:
    run_command("exec 3>traces; echo here >&3; " + {command!r})
except KeyboardInterrupt:
    print("interrupted")
"""
    child = zygote.shared().open(["-c", program], environment)
    assert is_read(traces, b"here\n")
    child.send_signal(signal.SIGINT)
    assert child.communicate() == ("interrupted\n", "")
    assert is_read(traces, b"")


def test_a_shell_that_is_missing_or_cannot_run_it(monkeypatch):
    with pytest.raises(GptOssError, match="embedded null byte"):
        run_command("a\0")
    monkeypatch.setenv("SHELL", "/no/shell")
    with pytest.raises(GptOssError, match="cannot run /no/shell -c: No such file or directory: SHELL names"):
        run_command("true")
    monkeypatch.delenv("SHELL")
    assert "status 0" in run_command("true")
