"""Mapped files that shrink, or whose disk goes, while they are in use: an error line, and a terminal as it was."""

import os
import re
import shutil
import signal
import sys

import pytest

import zygote
from gptoss_mlx import kernels
from gptoss_mlx.demo import CHECKPOINT
from terminal.terminals import Terminal

# Maps a file, leaves the terminal as a chat has it while an answer streams, and touches what is no longer there.
TOUCH = """
import ctypes, faulthandler, os, signal, sys, termios, threading
from pathlib import Path
import mlx.core as mx
from gptoss_mlx import kernels
from gptoss_mlx.model.checkpoint import Checkpoint
folder, way = sys.argv[1:]
def not_built():
    raise ModuleNotFoundError
if "NOT_BUILT" in os.environ:
    kernels.compiled = not_built
checkpoint = Checkpoint.open(Path(folder))
name = "model.embed_tokens.weight"
if way == "faulthandler":
    faulthandler.enable()
view, array = checkpoint.view(name), checkpoint.array(name)
settings = termios.tcgetattr(0)
settings[3] &= ~termios.ECHO
termios.tcsetattr(0, termios.TCSANOW, settings)
print("\\x1b[?25l\\x1b[2mhalf a line", end="", flush=True)
os.truncate(checkpoint.file_of[name], 0)
def multiply():
    rows, columns = array.shape
    stored = kernels.native().StoredMatrix("bf16", 16, 1, array, None, None, None)
    mx.eval(kernels.native().LinearMap(stored, rows, columns)(mx.ones((300, columns))))
def in_a_thread():
    thread = threading.Thread(target=view.sum)
    thread.start()
    thread.join()
def handed_on():
    os.fork() or (os.setpgid(0, 0), os._exit(view.sum()))
    print(" child", os.waitstatus_to_exitcode(os.wait()[1]), end="", flush=True)
    sys.exit(3)
{
    "numpy": view.sum,
    "faulthandler": view.sum,
    "mlx": lambda: mx.eval(array.sum()),
    "kernels": multiply,
    "thread": in_a_thread,
    "background": handed_on,
    "sent": lambda: os.kill(os.getpid(), signal.SIGBUS),
    "another": lambda: ctypes.string_at(0),
}[way]()
print("not reached")
"""


@pytest.fixture
def folder(endless_folder, tmp_path):
    return shutil.copytree(endless_folder, tmp_path / "m\x1b[31m\u00e9")


@pytest.fixture
def touch(folder, environment):
    def touch(way: str, **changes: str) -> Terminal:
        terminal = Terminal([sys.executable, "-c", TOUCH, str(folder), way], environment, **changes)
        terminal.exit_status()
        return terminal

    return touch


@pytest.mark.parametrize("way", ["numpy", "mlx", "kernels", "thread"])
def test_whoever_touches_it_the_terminal_is_restored(touch, way):
    if way == "kernels" and not kernels.native():
        pytest.skip(kernels.why_not_native())
    terminal = touch(way)
    assert (terminal.child.exitstatus, terminal.child.signalstatus) == (1, None)
    assert terminal.echoed
    assert not terminal.screen.cursor.hidden
    assert terminal.seen.startswith("half a line\nerror: /")
    line = terminal.sent.decode().split("\r\n")[1]
    assert "/m?[31m??/model" in line  # nothing of a name drives a terminal
    assert line.endswith("cut short, or its disk is gone; `gptoss-mlx verify` on its folder tells more")
    assert terminal.sent.count(b"error: ") == 1


@pytest.mark.parametrize("way", ["numpy", "thread"])
def test_where_nothing_is_compiled_it_is_restored_too(touch, way):
    terminal = touch(way, NOT_BUILT="1")
    assert (terminal.child.exitstatus, terminal.child.signalstatus) == (1, None)
    assert terminal.echoed
    assert not terminal.screen.cursor.hidden
    assert terminal.seen.startswith("half a line\nerror: a file of the model can no longer be read")
    assert len(terminal.sent.splitlines()) == 2


def test_a_traceback_that_was_asked_for_comes_too(touch):
    terminal = touch("faulthandler")
    assert terminal.child.signalstatus == signal.SIGBUS
    assert terminal.echoed
    assert b"cut short, or its disk is gone" in terminal.sent
    assert b"Fatal Python error: Bus error" in terminal.sent


def test_the_background_leaves_the_terminal_alone(touch):
    terminal = touch("background")
    assert terminal.child.exitstatus == 3
    assert b"half a lineerror: /" in terminal.sent
    assert b" child 1" in terminal.sent
    assert b"\x1b[?25h" not in terminal.sent


def test_a_signal_that_was_sent_ends_as_ever(touch):
    terminal = touch("sent")
    assert terminal.child.signalstatus == signal.SIGBUS
    assert terminal.echoed
    assert b"error" not in terminal.sent


def test_another_fault_is_as_ever(touch):
    terminal = touch("another")
    assert terminal.child.signalstatus == signal.SIGSEGV
    assert b"error" not in terminal.sent


# The command line, which leaves a file when it has read the prompt: then MLX has read all weights.
ANSWERING = """
import os
from pathlib import Path
import mlx.core as mx
from gptoss_mlx.cli import main
from gptoss_mlx.engine import generate
prefill_steps = generate.Model.prefill_steps
def prefilled(self, *arguments):
    logits = yield from prefill_steps(self, *arguments)
    mx.eval(logits)
    Path(os.environ["PREFILLED"]).touch()
    return logits
generate.Model.prefill_steps = prefilled
main()
"""


def goes_on_after_a_check_of_the_size(terminal: Terminal) -> bool:
    """False where the file was cut between the check and the look-up, which then ends the program."""
    checked = lambda: re.search(r"has\s+become\s+shorter", terminal.seen)  # noqa: E731
    assert terminal.read_until(lambda: checked() or not terminal.child.isalive(), 30), terminal.seen
    return checked() is not None


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kernels", ["1", "0"])
def test_a_chat_whose_model_is_cut_short(environment, endless_folder, tmp_path, kernels):
    model, prefilled = shutil.copytree(endless_folder, tmp_path / "model"), tmp_path / "prefilled"
    command = [sys.executable, "-c", ANSWERING, "chat", str(model), "--temperature", "0"]
    terminal = Terminal(command, environment, GPTOSS_MLX_KERNELS=kernels, PREFILLED=str(prefilled))
    terminal.wait("/help")
    terminal.line("Hello")
    assert terminal.read_until(prefilled.exists, 100, at_rest=False)  # now it answers, endlessly
    for shard in model.glob("*.safetensors"):
        os.truncate(shard, 0)
    noticed = False
    if kernels == "0":  # MLX has read the model, but for the embeddings, whose rows are looked up in the file
        noticed = goes_on_after_a_check_of_the_size(terminal)
    if noticed:
        terminal.line("/exit")
    assert terminal.exit_status() == (0 if noticed else 1)
    assert noticed or b"can no longer be read" in terminal.sent
    assert terminal.echoed
    assert not terminal.screen.cursor.hidden
    assert terminal.sent.count(b"error: ") == 1
    assert b"Traceback" not in terminal.sent


def test_a_model_that_is_cut_short_before_mlx_has_read_it(environment, endless_folder, tmp_path):
    model = shutil.copytree(endless_folder, tmp_path / "model")
    code = """
import os
from gptoss_mlx.engine import generate as engine
from gptoss_mlx.cli import main
prefill_steps = engine.Model.prefill_steps
def after_a_cut(self, *arguments):
    os.truncate(self.path / "model-00001-of-00002.safetensors", 25_000)
    return prefill_steps(self, *arguments)
engine.Model.prefill_steps = after_a_cut
main()
"""
    words = ["-c", code, "generate", str(model), "-p", "Hello"]
    done = zygote.shared().run(words, "", environment | {"GPTOSS_MLX_KERNELS": "0"}, timeout=100)
    assert done.returncode == 1
    assert done.stderr == (
        "error: a file of the model can no longer be read: check its folder with `gptoss-mlx verify`\n"
    )


# The command line, where each file shrinks between the check of its size and its use.
SHRINKING = """
import os
from gptoss_mlx.model import checkpoint
from gptoss_mlx.cli import main
check = checkpoint.Shard.check_size
def check_size(self):
    check(self)
    os.truncate(self.path, 4096)
checkpoint.Shard.check_size = check_size
main()
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "MODEL", "-p", "Hello"],
        ["chat", "MODEL"],
        pytest.param(["bench", "MODEL", "--prompt", "8", "--generate", "2"], marks=pytest.mark.slow),
        pytest.param(["eval", "MODEL", "--text", "TEXT"], marks=pytest.mark.slow),
        ["compare", "SOURCE", "MODEL"],
        ["inspect", "SOURCE", "--tensor", "model.norm.weight"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_every_command_that_maps_ends_in_a_line(demo_folder, environment, tmp_path, arguments):
    paths = {name: tmp_path / name for name in ("MODEL", "SOURCE", "TEXT")}
    shutil.copytree(demo_folder, paths["MODEL"])
    shutil.copytree(CHECKPOINT, paths["SOURCE"])
    paths["TEXT"].write_text("What is 12 + 30? " * 100)
    words = ["-c", SHRINKING, *(str(paths.get(word, word)) for word in arguments)]
    done = zygote.shared().run(words, "Hello\n", environment, timeout=100)
    assert done.returncode == 1, done
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert ".safetensors" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
