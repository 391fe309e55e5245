"""Errors of MLX that a user can meet: one sentence from the command line, an exception of ours in Python.

No GPU fails here, so that the words of MLX's sources are raised where MLX computes. What fails to be read is real.
"""

import shutil
from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import pytest

import zygote
from gptoss_mlx import GptOssError, GpuFailed, OutOfMemory, Sampling, Session, kernels, load
from gptoss_mlx.engine.mlx_errors import mlx_errors
from gptoss_mlx.engine.prompt_cache import PromptCache

IDS = [1, 2, 3]
GPU_OUT_OF_MEMORY = [
    "[METAL] Command buffer execution failed: Insufficient Memory"
    " (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory).",
    "[malloc] Unable to allocate 17179869184 bytes.",
    "[metal::malloc] Attempting to allocate 17179869184 bytes which is greater than the maximum allowed buffer size of"
    " 8589934592 bytes.",
    "cudaMallocAsync(&data, size, stream) failed: out of memory",
]
GPU_FAILED = [
    "[METAL] Command buffer execution failed: Caused GPU Timeout Error"
    " (00000002:kIOGPUCommandBufferCallbackErrorTimeout).",
    "[METAL] Command buffer execution failed: Ignored (for causing prior/excessive GPU errors)"
    " (00000004:kIOGPUCommandBufferCallbackErrorSubmissionsIgnored).",
    "[metal::malloc] Resource limit (499000) exceeded.",
    "[metal::Device] Unable to load kernel rope\nCompiler encountered an internal error\n",
    "[metal::load_device] No Metal device available. This typically occurs in headless, sandboxed, or virtualized macOS"
    " sessions where the GPU is not accessible.",
    "Failed to load the default metallib. library not found ",
    "cudaGraphLaunch(graph_exec, stream_) failed: an illegal memory access was encountered",
]
SEVERAL = pytest.mark.parametrize(
    ("error", "expected", "words"),
    [
        *((RuntimeError(text), OutOfMemory, "^the GPU is out of memory: .*--memory") for text in GPU_OUT_OF_MEMORY),
        *((RuntimeError(text), GpuFailed, "^the GPU failed: .*[^.]: try again;") for text in GPU_FAILED),
        (MemoryError(), OutOfMemory, "^out of memory: .*--context"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, Exception) else "",
)


def failing(monkeypatch, name, error):
    """Let MLX's function fail, once."""
    real = getattr(mx, name)

    def fail(*arguments):
        monkeypatch.setattr(mx, name, real)
        raise error

    monkeypatch.setattr(mx, name, fail)


@SEVERAL
def test_prefill_and_decode(demo_folder, monkeypatch, error, expected, words):
    model = load(demo_folder)
    failing(monkeypatch, "eval", error)
    with pytest.raises(expected, match=words) as caught:
        model.prefill(IDS, model.make_cache())
    assert "\n" not in str(caught.value)
    decoded = model.generate(IDS, sampling=Sampling(temperature=0), stop=(), max_tokens=4)
    next(decoded)
    failing(monkeypatch, "async_eval", error)
    with pytest.raises(expected, match=words):
        list(decoded)


def test_loading(demo_folder, monkeypatch):
    failing(monkeypatch, "set_cache_limit", RuntimeError(GPU_FAILED[-2]))  # where a GPU is met first
    with pytest.raises(GpuFailed, match="metallib"):
        load(demo_folder)


def test_a_snapshot(demo_folder, monkeypatch):
    cache = PromptCache(load(demo_folder))
    cache.read(IDS)
    failing(monkeypatch, "eval", RuntimeError(GPU_OUT_OF_MEMORY[0]))
    with pytest.raises(OutOfMemory):
        cache.snapshot()


def test_an_error_of_ours_stays_what_it_is(demo_folder, monkeypatch):
    model = load(demo_folder)
    failing(monkeypatch, "eval", error := RuntimeError("a slot is missing"))
    with pytest.raises(RuntimeError) as caught:
        model.prefill(IDS, model.make_cache())
    assert caught.value is error


@pytest.mark.parametrize("name", ["eval", "async_eval"])
def test_a_conversation_goes_on(demo_folder, monkeypatch, name):
    """`eval` is called by prefill, `async_eval` by decode."""

    def said(session, question):
        list(session.send(question))
        return session.messages[-1].content

    def new():
        return Session(load(demo_folder), sampling=Sampling(temperature=0), current_date="2026-01-01")

    session, undisturbed = new(), new()
    for each in (session, undisturbed):
        said(each, "My locker code is 4711.")
    before = session.messages
    failing(monkeypatch, name, RuntimeError(GPU_OUT_OF_MEMORY[0]))
    with pytest.raises(OutOfMemory):
        said(session, "What is 12 + 30?")
    assert session.messages == before
    question = "What is my locker code?"
    assert said(session, question) == said(undisturbed, question)


def cut_off(path):
    with open(path, "r+b") as file:
        file.truncate(100_000)


def test_a_file_that_can_no_longer_be_read(demo_folder, tmp_path):
    folder = shutil.copytree(demo_folder, tmp_path / "model")
    with kernels.off():  # weights are not mapped, but read when they are first used
        model = load(folder)
        cut_off(folder / "model-00001-of-00002.safetensors")  # the other one has the embeddings
        with pytest.raises(GptOssError, match=r"can no longer be read.* verify"):
            model.prefill(IDS, model.make_cache())


def test_an_error_is_reported_once(tmp_path):
    """Also where a stream waited for another, as the GPU does for rows of embeddings: each of them has the error,
    or not, by chance."""
    file = tmp_path / "file.safetensors"
    other = mx.new_stream(mx.cpu)
    for _ in range(20):
        mx.save_safetensors(str(file), {"x": mx.zeros((1000, 1000))})
        x = mx.load(str(file))["x"]
        cut_off(file)
        with pytest.raises(GptOssError, match="can no longer be read"), mlx_errors():
            mx.eval(mx.add(x, 1, stream=other))
        assert float(mx.array(1.0) + 1) == 2


def test_a_model_of_another_thread(demo_folder):
    model = load(demo_folder)
    with ThreadPoolExecutor(1) as other:
        with pytest.raises(GptOssError, match="loaded in another thread: load it in"):
            other.submit(model.prefill, IDS, model.make_cache()).result()
        model = other.submit(load, demo_folder).result()
        other.submit(lambda: list(model.generate(IDS, max_tokens=2))).result()


# Each command computes with `mx.eval`, which fails as a GPU does; in a chat the first time only.
FAILING = """
import sys
import mlx.core as mx
from gptoss_mlx.cli import main
real, times = mx.eval, iter([None] * int(sys.argv.pop(1)))
def fail(*arrays):
    if next(times, arrays) is None:
        raise RuntimeError({text!r})
    real(*arrays)
mx.eval = fail
main()
"""


@pytest.fixture
def run_failing(environment):
    def run_failing(times, *arguments, stdin="", text=GPU_OUT_OF_MEMORY[0]):
        words = ["-c", FAILING.format(text=text), str(times), *map(str, arguments)]
        return zygote.shared().run(words, stdin, environment, timeout=100)

    return run_failing


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "-p", "Hello"),
        ("bench", "--prompt", "16", "--generate", "4", "--no-start", "--memory", "300MB"),
        ("eval",),
        ("chat",),
    ],
    ids=lambda arguments: arguments[0],
)
def test_commands_say_it_in_one_line(run_failing, demo_folder, arguments):
    name, *options = arguments
    done = run_failing(10**6, name, demo_folder, *options, stdin="Hello\n" if name == "chat" else "")
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().split("\n")[-1].startswith("error: the GPU is out of memory: give a smaller --memory")
    assert done.returncode == (0 if name == "chat" else 1)


def test_a_chat_goes_on(run_failing, demo_folder):
    done = run_failing(1, "chat", demo_folder, "--temperature", "0", stdin="Hello\nWhat is 12 + 30?\n")
    assert done.stderr.count("the GPU is out of memory") == 1
    assert done.stdout.strip().endswith("12 + 30 = 42")
    assert done.returncode == 0


def test_what_nobody_foresaw_shows_where_it_was(run_failing, demo_folder):
    done = run_failing(1, "generate", demo_folder, "-p", "Hello", text="a slot is missing")
    assert "Traceback" in done.stderr
