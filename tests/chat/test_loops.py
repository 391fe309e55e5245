"""A model that repeats itself is stopped; a text that a person may have asked for is not.

`PYTHONPATH=tests python tests/chat/test_loops.py MINUTES` tries models that say any token behind any other.
"""

import itertools
import json
import random
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

import pytest

from checkpoints import config_of, tensors_of, write_checkpoint, write_safetensors
from gptoss_convert import convert
from gptoss_mlx import Sampling, Session, load
from gptoss_mlx.chat import repetition
from gptoss_mlx.chat.repetition import CHECK_EVERY, LOOP, MAX_CYCLE, cycle_at_end
from gptoss_mlx.demo import CHECKPOINT
from gptoss_mlx.engine.tokenizer import Tokenizer
from gptoss_mlx.harmony.parse import Content
from gptoss_mlx.terminal.controller import Chat
from gptoss_mlx.terminal.loop import converse
from gptoss_mlx.terminal.screen import PlainScreen

ENDS_A_HEADER = 262  # <|message|> of the tests' tokenizer


def memoryless_model(folder, seed=0, cycle=None):
    """A network whose layers add nothing, so that each token decides the next one: at random, or, with a `cycle`, so
    that ids 0, 1, ... `cycle` - 1 follow each other over and over."""
    config = config_of(num_hidden_layers=1)
    source = write_checkpoint(folder / "source", config, shards=1)
    tensors = tensors_of(config, seed)
    for name, (array, _) in tensors.items():
        if ".o_proj." in name or ".down_proj" in name:
            array[:] = 0
        elif "norm.weight" in name:
            array[:] = 0x3F80  # 1
    if cycle:
        embeddings, head = (tensors[name][0] for name in ("model.embed_tokens.weight", "lm_head.weight"))
        head[:] = 0
        for id_ in range(cycle):
            head[(id_ + 1) % cycle] = embeddings[id_]
        embeddings[ENDS_A_HEADER] = embeddings[cycle - 1]
    write_safetensors(next(source.glob("*.safetensors")), tensors)
    convert(source, folder / "model", "mxfp4-bf16")
    return folder / "model"


@pytest.fixture(params=[256, pytest.param(LOOP, marks=pytest.mark.slow)])
def loop(request, monkeypatch):
    """Tokens of a loop: fewer by default, which are quicker to decode."""
    monkeypatch.setattr(repetition, "CHECK_EVERY", request.param // 16)
    monkeypatch.setattr(repetition, "LOOP", request.param)
    return request.param


@pytest.fixture(scope="module")
def stuck_folder(tmp_path_factory):
    return memoryless_model(tmp_path_factory.mktemp("stuck"), cycle=7)


def make_session(folder, **options):
    return Session(load(folder), sampling=Sampling(temperature=0), reasoning_effort="none", **options)


@pytest.mark.parametrize("cycle", [1, 2, 7, 200])
def test_a_model_in_a_loop_is_stopped(tmp_path, loop, cycle):
    session = make_session(memoryless_model(tmp_path, cycle=cycle))
    events = list(session.send("Hello"))
    stats = events[-1]
    assert (stats.cycle, stats.finished) == (cycle, False)
    assert loop <= stats.decoded + 1 < loop + loop // 16
    said = "".join(event.text for event in events if isinstance(event, Content))
    assert said.startswith("".join(chr(33 + id_) for id_ in range(min(cycle, 90))))


def test_it_can_go_on_from_there(stuck_folder, loop):
    session = make_session(stuck_folder)
    first = list(session.send("Hello"))[-1]
    again = list(session.resume())[-1]
    assert (first.cycle, again.cycle, again.finished) == (7, 7, False)
    assert len(session.messages[-1].content) > 2 * loop


class Lines:
    def __init__(self, *lines):
        self.lines = iter(lines)

    def read(self, status, draft):
        return next(self.lines, None)


@pytest.mark.usefixtures("loop")
def test_the_chat_says_so(stuck_folder, capsys):
    converse(Chat(make_session(stuck_folder), PlainScreen(show_reasoning=None)), Lines("Hello", "/continue"))
    note = "(stopped: the model was repeating the same 7 tokens; /continue resumes)"
    assert [line for line in capsys.readouterr().err.splitlines() if line.startswith("(")] == [note, note]


@pytest.mark.usefixtures("loop")
def test_generate_ends_with_an_error(run_here, stuck_folder):
    done = run_here("generate", stuck_folder, "-p", "Hello", "--temperature", "0", "--reasoning", "none")
    assert done.returncode == 1
    assert done.stdout.startswith("!\"#$%&'!\"#$%&'")
    lines = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert lines == [
        "error: stopped, because the model was repeating the same 7 tokens: try --repetition-penalty 1.1, or another"
        " --seed"
    ]


def check_that_it_ends(folder, seed):
    """Whatever follows what, markup included: a turn ends by itself, or is stopped within a loop."""
    session = make_session(memoryless_model(folder, seed))
    stats = list(session.send("Hello"))[-1]
    assert stats.decoded < 2 * repetition.LOOP
    return stats.cycle


@pytest.mark.usefixtures("loop")
@pytest.mark.parametrize("seed", range(3))
def test_any_function_of_the_last_token_ends(tmp_path, seed):
    check_that_it_ends(tmp_path, seed)


@pytest.mark.parametrize("cycle", [1, 3, 64, 511, MAX_CYCLE])
def test_any_cycle_is_found_behind_any_text(cycle):
    picked = random.Random(cycle)
    before = [picked.randrange(1000) for _ in range(picked.randrange(5000))]
    ids = list(itertools.islice(itertools.cycle(range(1000, 1000 + cycle)), LOOP))
    assert cycle_at_end(before + ids) == cycle
    assert cycle_at_end(before + ids[:-1] + [7]) is None
    assert cycle_at_end(ids[1:]) is None


def texts(every):
    """Texts that people ask for and that programs write, and one in `every` modules of Python's."""
    rows = [f"{i},{i * 7 % 13},0,0,0,{'yes' if i % 3 else 'no'}" for i in range(3000)]
    yield "id,count,a,b,c,ok\n" + "\n".join(rows)
    yield json.dumps([0] * 1000)
    yield json.dumps([[0] * 28] * 28, indent=1)
    yield json.dumps([{"id": i, "name": "", "tags": [], "score": 0.0} for i in range(1000)], indent=2)
    yield "| a | b |\n| --- | --- |\n" + "| 0 | 0 |\n" * 300
    yield "\n".join(f"2026-01-01 00:{i // 60:02}:{i % 60:02} INFO worker: heartbeat ok" for i in range(2000))
    yield "\n".join(" ".join(["00"] * 16) for _ in range(60))
    yield "=" * 3000 + "\n" + "- " * 1000
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[::every]:
        yield path.read_text(encoding="utf-8", errors="replace")


@pytest.mark.parametrize("every", [40, pytest.param(5, marks=pytest.mark.slow)])
@pytest.mark.parametrize("tokenizer", ["of the demo", "of bytes"])
def test_no_real_text_is_taken_for_a_loop(tmp_path, tokenizer, every):
    folder = CHECKPOINT if tokenizer == "of the demo" else write_checkpoint(tmp_path, config_of())
    encode = Tokenizer.load(folder).encode
    for text in texts(every):
        ids = encode(text[:100_000])
        ends = range(LOOP, len(ids) + 1, CHECK_EVERY)
        assert not any(cycle_at_end(ids[end - LOOP : end]) for end in ends), text[:200]


def main(minutes):
    until, cycles = time.monotonic() + 60 * minutes, []
    while time.monotonic() < until:
        with tempfile.TemporaryDirectory() as root:
            cycles.append(check_that_it_ends(Path(root), len(cycles)))
    print(f"{len(cycles)} models, {sum(map(bool, cycles))} stopped in a loop, of {sorted(set(filter(None, cycles)))}")


if __name__ == "__main__":
    main(float(sys.argv[1]))
