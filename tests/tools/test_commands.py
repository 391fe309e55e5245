"""Tools from a TOML file: what a file may say, which arguments are let through, and real commands and how they end."""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from gptoss_mlx.harmony.messages import Conversation, Tool
from gptoss_mlx.harmony.parse import ToolCall
from gptoss_mlx.harmony.render import render_text
from gptoss_mlx.tools import commands
from gptoss_mlx.tools.commands import ArgumentsError, Command, ToolsFileError, load_tools
from gptoss_mlx.tools.toolbox import Function, Toolbox

EXAMPLE = Path(__file__).parents[2] / "examples" / "tools.toml"
TEXT = {"type": "string"}


def command(*words: str, timeout: float = 20, output: int = 10_000, required=(), more=None, **properties) -> Command:
    schema = {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}
    return Command(words, schema | (more or {}), timeout, output)


def python(code: str, *words: str, **options) -> Command:
    return command(sys.executable, "-IS", "-c", code, *words, **options)


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "tools.toml"
    path.write_text(text)
    return path


def is_running(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


def ends(pid: int) -> bool:
    until = time.monotonic() + 60
    while is_running(pid) and time.monotonic() < until:
        time.sleep(0.01)
    return not is_running(pid)


# Files.


def test_the_example_runs(tmp_path):
    toolbox = Toolbox(load_tools(EXAMPLE))
    (tmp_path / "note.txt").write_text("one\nthe -n of it\n")
    assert ":" in toolbox.run(ToolCall("current_time", "{}"))
    assert "/" in toolbox.run(ToolCall("disk_space", "{}"))
    assert "/" in toolbox.run(ToolCall("disk_space", '{"folder": "/"}'))
    search = ToolCall("search_text", json.dumps({"text": "-n of", "path": str(tmp_path)}))
    assert toolbox.asks(search)
    assert toolbox.preview(search) == f"grep -rnIF -m 20 -- '-n of' {shlex.quote(str(tmp_path))}"
    assert toolbox.run(search) == f"{tmp_path}/note.txt:2:the -n of it\n"
    wrong = ToolCall("search_text", '{"text": "x"}')
    assert json.loads(toolbox.run(wrong)) == {"error": "$: 'path' is a required property"}
    prompt = render_text(Conversation(tools=toolbox.tools))
    assert "type current_time = () => any;" in prompt
    assert "folder?: string," in prompt


def test_everything_that_a_file_can_say(tmp_path):
    (tmp_path / "schema.json").write_text(json.dumps({"type": "object", "properties": {"n": {"type": "integer"}}}))
    path = written(
        tmp_path,
        """
        [tools.a]
        description = "A."
        command = ["echo", "{n}", "{ n }", "{}", "{1}"]
        parameters_file = "schema.json"
        timeout = 0.5
        output = 100
        [tools.b]
        description = "B."
        command = ["echo", "b"]
        """,
    )
    a, b = load_tools(path, asks=False)
    assert (a.tool.name, a.tool.description, a.asks) == ("a", "A.", False)
    assert a.tool.parameters["properties"] == {"n": {"type": "integer"}}
    assert (a.run.__self__.timeout, a.run.__self__.output) == (0.5, 100)
    assert a.run(n=3) == "3 { n } {} {1}\n"
    assert b.run() == "b\n"


GOOD = 'description = "T."\ncommand = ["true"]\n'


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "empty"),
        ("# nothing\n", "has no tools"),
        ("tools = 3", "has no tools"),
        ("[tools]", "has no tools"),
        ("x = ", "not a file of tools in TOML"),
        ("a = " + "[" * 5000 + "]" * 5000, "not a file of tools in TOML"),
        ("a = " + "[" * 40 + "]" * 40, "nested more than"),
        ("[tools.t]\ntimeout = 2026-01-02", "not a file of tools in TOML"),
        (f"[tools.t]\n{GOOD}timeout = inf", "not a file of tools in TOML"),
        ("[tool.t]", "'tool'"),
        ("[tools]\nt = 3", "tools.t is not a table"),
        (f"[tools.t]\n{GOOD}shell = true", "'shell'.*description, command"),
        (f"[tools.'a b']\n{GOOD}", "the name of a tool"),
        (f"[tools.python]\n{GOOD}", "not browser or python"),
        (f'[tools."a\\u001b"]\n{GOOD}', r"tools\.a\\x1b"),
        ('[tools.t]\ncommand = ["true"]', "description"),
        ('[tools.t]\ndescription = "T."', "command is not a list of words"),
        ('[tools.t]\ndescription = "T."\ncommand = "wc -w"', "command is not a list of words"),
        ('[tools.t]\ndescription = "T."\ncommand = []', "command is not a list of words"),
        ('[tools.t]\ndescription = "T."\ncommand = ["true", 3]', "command is not a list of words"),
        ('[tools.t]\ndescription = "T."\ncommand = ["{file}"]', "not with the name of a program"),
        ('[tools.t]\ndescription = "T."\ncommand = ["wc", "{file}"]', r"\{file\}, which is none of its parameters"),
        ('[tools.t]\ndescription = "T."\ncommand = ["wc", "\\u0000"]', "null character"),
        (f"[tools.t]\n{GOOD}timeout = 0", "timeout is 0"),
        (f"[tools.t]\n{GOOD}timeout = true", "timeout is True"),
        (f"[tools.t]\n{GOOD}output = 0", "output is 0"),
        (f"[tools.t]\n{GOOD}output = 1.5", "output is 1.5"),
        (f"[tools.t]\n{GOOD}parameters = 3", "not a JSON schema of type"),
        (f'[tools.t]\n{GOOD}parameters.type = "string"', "not a JSON schema of type"),
        (f'[tools.t]\n{GOOD}parameters = {{ type = "object", required = 3 }}', r"\$.required"),
        (f'[tools.t]\n{GOOD}parameters = {{ type = "object", properties.n.type = "text" }}', r"\$.properties.n.type"),
        (f'[tools.t]\n{GOOD}parameters = {{ type = "object", properties.n.pattern = "(" }}', "regex"),
        (f'[tools.t]\n{GOOD}parameters = {{ type = "object", properties."a b".type = "string" }}', "'a b'"),
        (f'[tools.t]\n{GOOD}parameters_file = "none.json"', "none.json"),
        (f"[tools.t]\n{GOOD}parameters_file = 3", "parameters_file"),
        (f'[tools.t]\n{GOOD}parameters_file = "a.json"\nparameters.type = "object"', "both"),
    ],
)
def test_a_file_that_says_something_else(tmp_path, text, complaint):
    with pytest.raises(ToolsFileError, match=complaint) as caught:
        load_tools(written(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name in ("none", "fifo", "binary", "."):
        with pytest.raises(ToolsFileError):
            load_tools(tmp_path / name)


# Arguments.


def test_arguments_are_words_of_their_own():
    echo = python("import sys; print(sys.argv[1:])", "{a}", "x={b}", "{a}{b}", a=TEXT, b={})
    assert echo.run(a="$(id); `id` '\"", b=[1, "é"]) == str(
        ["$(id); `id` '\"", 'x=[1, "é"]', "$(id); `id` '\"" + '[1, "é"]']
    ) + "\n"  # fmt: skip
    assert echo.run(a="{b}", b=True) == "['{b}', 'x=true', '{b}true']\n"
    assert echo.run(a="only") == "['only']\n"
    assert echo.run(b=None) == "[]\n"


def test_arguments_are_json_on_standard_input():
    cat = command("cat", text=TEXT)
    long = "é\x00\udc80" * 100_000
    assert json.loads(command("cat", output=10**7, text=TEXT).run(text=long)) == {"text": long}
    assert cat.run() == "{}"
    assert cat.line(text="a'b") == """cat <<< '{"text": "a'"'"'b"}'"""
    assert subprocess.run(["bash", "-c", cat.line(text="a'b")], capture_output=True).stdout == b'{"text": "a\'b"}\n'
    assert command("true", text=TEXT).run(text=long) == ""  # which reads nothing


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({}, "'a' is a required property"),
        ({"a": 3}, "3 is not of type 'string'"),
        ({"a": "x", "n": True}, "True is not of type 'integer'"),
        ({"a": "x", "n": 11}, "maximum"),
        ({"a": "x", "e": "z"}, r"'z' is not one of \['x', 'y'\]"),
        ({"a": "x", "o": {"p": 1}}, r"\$.o.p: 1 is not of type 'string'"),
        ({"a": "x", "self": 1}, "'self' was unexpected"),
        ({"a": "x", "far": 1}, "cannot be followed"),
        ({"a": "x\0y"}, "not text that a command can be given"),
        ({"a": "x\ud800y"}, "not text that a command can be given"),
        ({"a": "-rf"}, "begins with '-'"),
        ({"a": "--"}, "begins with '-'"),
        ({"a": "", "n": -5}, "begins with '-'"),
    ],
)
def test_arguments_that_do_not_fit(tmp_path, arguments, complaint):
    trace = tmp_path / "ran"
    touch = command(
        "touch", str(trace), "{a}", "{a}{n}",
        required=["a"],
        a=TEXT,
        n={"type": "integer", "maximum": 10},
        e={"enum": ["x", "y"]},
        o={"type": "object", "properties": {"p": TEXT}},
        far={"$ref": "http://localhost:1/schema.json"},
    )  # fmt: skip
    for call in (touch.run, touch.line):
        with pytest.raises(ArgumentsError, match=complaint):
            call(**arguments)
    assert not trace.exists()


EXPLODING = {
    "pattern": ({"properties": {"a": {"pattern": "(a+)+$"}}}, {"a": "a" * 5000 + "!"}),
    "alternatives": ({"properties": {"a": {"pattern": r"^(\w\d?|\d)*$"}}}, {"a": "1" * 5000 + "!"}),
    "back reference": ({"properties": {"a": {"pattern": r"^(a*)*\1b"}}}, {"a": "a" * 5000}),
    "names": ({"patternProperties": {"^(a|aa)+$": {}}}, {"a" * 5000 + "!": 1}),
    "no other names": ({"patternProperties": {"(a|a)+$": {}}, "additionalProperties": {}}, {"a" * 5000 + "!": 1}),
    "property names": ({"propertyNames": {"pattern": "^(a?){99}b"}}, {"a" * 5000: 1}),
    "in a list": ({"properties": {"a": {"contains": {"pattern": "(.*)*x"}}}}, {"a": ["b" * 5000] * 100}),
    "not evaluated": ({"patternProperties": {"(b+)+c": {}}, "unevaluatedProperties": False}, {"b" * 5000: 1}),
    "unique": ({"properties": {"a": {"uniqueItems": True}}}, {"a": [[i, str(i), None] for i in range(30_000)] + [{}]}),
    "references": (
        {"$defs": {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(40)} | {"d40": {}}}
        | {"$ref": "#/$defs/d0"},
        {"a": 1},
    ),
}


@pytest.mark.parametrize(("schema", "arguments"), EXPLODING.values(), ids=list(EXPLODING))
def test_a_check_without_end_is_given_up(monkeypatch, schema, arguments):
    monkeypatch.setattr(commands, "CHECK_SECONDS", 0.02)
    echo = Command(("echo",), {"type": "object"} | schema)
    tool = Toolbox([Function(Tool("echo", "E.", None), echo.run, asks=True, preview=echo.line)])
    call = ToolCall("echo", json.dumps(arguments))
    assert tool.preview(call) == call.arguments
    complaint = "the arguments take more than 0.02 seconds to compare with the tool's schema"
    assert json.loads(tool.run(call)) == {"error": complaint}
    assert signal.getsignal(signal.SIGVTALRM) is signal.SIG_DFL
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0, 0)


@pytest.mark.parametrize("depth", [100, 900, 100_000])
@pytest.mark.parametrize("brackets", ["[]", '{"a":}'])
def test_arguments_that_are_nested_deeply(depth, brackets):
    opening, closing = brackets[:-1], brackets[-1]
    text = f'{{"a": {opening * depth}1{closing * depth}}}'
    tree = {"$ref": "#", "anyOf": [{"items": {"$ref": "#/properties/a"}}, {"properties": {"a": {"$ref": "#"}}}]}
    for schema in ({"properties": {"a": TEXT}}, {"properties": {"a": tree}}, {}):
        echo = Command(("echo",), {"type": "object"} | schema)
        tool = Toolbox([Function(Tool("echo", "E.", None), echo.run, preview=echo.line)])
        assert tool.preview(ToolCall("echo", text))
        result = tool.run(ToolCall("echo", text))
        assert result == "\n" or "error" in json.loads(result)
        assert len(result) < 1200
    assert depth < 10_000 or json.loads(result) == {"error": "the arguments are nested too deeply"}


def test_a_complaint_does_not_repeat_a_long_argument():
    with pytest.raises(ArgumentsError) as error:
        command("echo", a={"type": "integer"}).run(a="x" * 1_000_000)
    assert str(error.value).startswith("$.a: 'xxx")
    assert str(error.value).endswith("is not of type 'integer'")
    assert len(str(error.value)) < 1100


def test_what_may_begin_with_a_hyphen():
    echo = python("import sys; print(sys.argv[1:])", "--lines={n}", "-x{n}", "a", "--", "{n}", n={})
    assert echo.run(n=-5) == "['--lines=-5', '-x-5', 'a', '--', '-5']\n"


def test_a_schema_can_be_open():
    assert command("cat", more={"additionalProperties": True}).run(anything=1) == '{"anything": 1}'


# Runs.


def test_results():
    fail = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(int(sys.argv[1]))"
    assert python(fail, "0").run() == "out\n"
    assert python(fail, "3").run() == {"exit_status": 3, "output": "out\n", "error_output": "err\n"}
    assert python("import sys; sys.stdout.buffer.write(b'a\\xff\\r\\n\\x00b')").run() == "a\ufffd\r\n\0b"
    assert command("sh", "-c", "kill -TERM $$").run()["exit_status"] == -signal.SIGTERM
    assert command("no-such-program").run() == {"error": "cannot run no-such-program: No such file or directory"}
    assert "cannot run /:" in command("/").run()["error"]
    assert "cannot run" in command("true", "{a}", a=TEXT).run(a="x" * 3_000_000)["error"]


def test_it_runs_where_the_user_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLOR_OF_THE_DAY", "green")
    assert command("sh", "-c", 'pwd -P; echo "$COLOR_OF_THE_DAY"').run() == f"{tmp_path.resolve()}\ngreen\n"


def test_long_output_is_cut_in_the_middle():
    text = python("print('a' * 5000 + 'b' * 5000)", output=100).run()
    assert text == "a" * 50 + "\n[9,901 characters left out]\n" + "b" * 49 + "\n"
    assert python("print('é' * 99)", output=100).run() == "é" * 99 + "\n"
    assert python("print('abc')", output=1).run().endswith("\n\n")


def test_endless_output_is_stopped():
    too_much = "stopped, because it wrote more than 4,194,304 bytes"
    result = command("yes", output=100, timeout=60).run()
    assert result["error"] == too_much
    assert result["output"].startswith("y\ny\n")
    assert len(result["output"]) < 200
    assert command("sh", "-c", "yes >&2", timeout=60).run()["error"] == too_much


def test_a_timeout_ends_the_whole_group(tmp_path):
    pids = tmp_path / "pids"
    script = f"sh -c 'echo $$ >> {pids}; trap \"\" TERM; sleep 100' & echo $$ >> {pids}; echo begun; wait"
    started = time.monotonic()
    result = command("sh", "-c", script, timeout=1).run()
    assert time.monotonic() - started < 60  # it has not waited for the sleep
    assert result == {
        "error": "stopped, because it took longer than 1 seconds",
        "output": "begun\n",
        "error_output": "",
    }
    assert len(pids.read_text().split()) == 2
    assert all(ends(int(pid)) for pid in pids.read_text().split())


def test_a_timeout_of_what_has_closed_its_output():
    result = command("sh", "-c", "exec >&- 2>&-; sleep 100", timeout=0.3).run()
    assert "longer than 0.3 seconds" in result["error"]


def test_what_a_command_leaves_behind_ends_with_it():
    pid = command("sh", "-c", "sleep 100 & echo $!", timeout=60).run()  # or there would be an error
    assert ends(int(pid))


LEFT_BEHIND = [
    "sleep 100 & echo $!",
    "setsid sh -c 'echo $$; exec >&- 2>&-; sleep 100' &",
    "setsid -f sh -c 'echo $$; sleep 100'",
    "(setsid sh -c 'echo $$; trap \"\" TERM HUP; sleep 100; sleep 100' &) &",
    "env -i setsid -f nohup sh -c 'echo $$; kill -STOP $$'",
    "setsid -f setsid -f setsid -f sh -c 'echo $$; while :; do echo; sleep 0.01; done'",
]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere, `setsid` gets away")
@pytest.mark.parametrize("then", ["", "; yes"], ids=["ended", "stopped"])
@pytest.mark.parametrize("script", LEFT_BEHIND)
def test_nothing_gets_away(tmp_path, script, then):
    script = script.replace("echo $", f"echo >{tmp_path}/pid $")
    wait = f"until test -s {tmp_path}/pid; do sleep 0.01; done"
    result = command("sh", "-c", f"{script}\n{wait}{then}").run()
    assert ("wrote more than" in result["error"]) if then else set(result) <= {"\n"}
    assert not is_running(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize(
    "stop",
    [
        "os.kill(os.getpid(), signal.SIGSTOP)",
        "os.kill(0, signal.SIGSTOP)",
        pytest.param(
            "import ctypes; ctypes.CDLL(None).ptrace(0, 0, 0, 0); os.kill(os.getpid(), signal.SIGSTOP)",
            marks=pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it has another name"),
        ),
    ],
)
def test_a_command_that_stops_itself_has_a_timeout_too(stop):
    result = python(f"import os, signal; print(os.getpid(), flush=True); {stop}", timeout=1.5).run()
    assert result["error"] == "stopped, because it took longer than 1.5 seconds"
    assert not any(is_running(int(pid)) for pid in result["output"].split())


def test_what_has_left_the_group_does_not_hold_us_up():
    code = "import os, time\nif os.fork():\n    print('done')\nelse:\n    os.setsid(); time.sleep(100)"
    assert python(code, timeout=60).run() == "done\n"


def test_interrupted_the_group_ends_and_the_tool_goes_on(tmp_path):
    pid_file = tmp_path / "pid"
    sleeper = command("sh", "-c", f"sleep 100 & echo $! > {pid_file}.new; mv {pid_file}.new {pid_file}; wait")

    def interrupt():
        while not pid_file.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        sleeper.run()
    assert ends(int(pid_file.read_text()))
    assert command("echo", "on").run() == "on\n"


def test_runs_leave_no_file_open():
    folder = Path("/dev/fd")
    command("true").run()
    before = len(list(folder.iterdir()))
    for _ in range(3):
        command("cat").run()
        command("no-such-program").run()
    assert len(list(folder.iterdir())) == before


def test_the_file_is_what_needs_the_schema_library():
    """The command line starts without it."""
    code = "import sys, gptoss_mlx.tools.commands; print('jsonschema' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_the_pattern_of_placeholders_finds_whole_names():
    assert commands._names(["{a}{b}", "{ c }", "{d-e}", "$0{f_1}"]) == {"a", "b", "f_1"}
