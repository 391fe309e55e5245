"""NaN and infinity in a model's files, or in its KV state: one line that says what to do, never an answer.

`python tests/model/test_not_finite.py MINUTES` tries random places of the embedded model, with kernels and without.
"""

import random
import shutil
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from gptoss_convert import convert
from gptoss_mlx import GptOssError, Sampling, Session, kernels, load
from gptoss_mlx.demo import CHECKPOINT
from gptoss_mlx.engine.generate import NotFinite
from gptoss_mlx.engine.tokenizer import Tokenizer
from gptoss_mlx.model.checkpoint import Checkpoint
from gptoss_mlx.model.kv_cache import FullKV, RingKV

GREEDY = Sampling(temperature=0)
BITS = {"BF16": {"nan": 0x7FC0, "inf": 0x7F80, "-inf": 0xFF80}, "U8": {"nan": 255}}
LAYER, EXPERTS = "model.layers.1", "model.layers.1.mlp.experts"


def poison(folder, name, value, *, everywhere=False, place=0.5):
    """Overwrite an element of a tensor, or all of them, in its file; `place` from 0 to 1."""
    checkpoint = Checkpoint.open(folder)
    tensor = checkpoint.tensors[name]
    elements = np.memmap(checkpoint.file_of[name], np.uint8, "r+")[tensor.start : tensor.end]
    elements = elements.view({"BF16": np.uint16, "U8": np.uint8}[tensor.dtype])
    elements[slice(None) if everywhere else int(elements.size * place)] = BITS[tensor.dtype][value]


@pytest.fixture
def folder(demo_folder, tmp_path):
    return shutil.copytree(demo_folder, tmp_path / "model")


@pytest.fixture(scope="module")
def ids(demo_folder):
    return Tokenizer.load(demo_folder).encode("What is 347 + 285? What is the weather in Bermi? ")


def refusal(folder, ids):
    with pytest.raises(GptOssError, match=r"NaN or infinity.* damaged.*`gptoss-mlx verify ") as caught:
        list(load(folder).generate(ids, sampling=GREEDY, max_tokens=4, stop=()))
    return caught.value


@pytest.mark.usefixtures("computing")
@pytest.mark.parametrize("value", ["nan", "inf", pytest.param("-inf", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name",
    [
        f"{LAYER}.input_layernorm.weight",
        f"{LAYER}.post_attention_layernorm.weight",
        f"{LAYER}.self_attn.q_proj.scales",
        f"{LAYER}.self_attn.k_proj.biases",
        f"{LAYER}.self_attn.v_proj.bias",
        f"{LAYER}.self_attn.o_proj.bias",
        f"{LAYER}.self_attn.o_proj.scales",
        f"{LAYER}.mlp.router.weight",
        f"{EXPERTS}.gate_proj.bias",
        f"{EXPERTS}.up_proj.bias",
        f"{EXPERTS}.down_proj.bias",
        "model.norm.weight",
        "lm_head.scales",
        "lm_head.biases",
    ],
)
def test_a_single_weight(folder, ids, name, value):
    poison(folder, name, value)
    refusal(folder, ids)


@pytest.mark.usefixtures("computing")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        (f"{LAYER}.self_attn.sinks", "nan"),
        (f"{LAYER}.self_attn.sinks", "inf"),
        (f"{LAYER}.mlp.router.bias", "nan"),
        (f"{LAYER}.mlp.router.bias", "inf"),
        (f"{EXPERTS}.gate_proj.scales", "nan"),
        (f"{EXPERTS}.up_proj.scales", "nan"),
        (f"{EXPERTS}.down_proj.scales", "nan"),
        ("model.embed_tokens.scales", "nan"),
        ("model.embed_tokens.biases", "inf"),
    ],
)
def test_all_of_a_tensor(folder, ids, name, value):
    poison(folder, name, value, everywhere=True)
    refusal(folder, ids)


def test_what_is_found_before_the_first_token_is_named(folder, ids):
    poison(folder, f"{LAYER}.self_attn.sinks", "nan")
    assert "'model.layers.1.self_attn.sinks' holds" in str(refusal(folder, ids))


@pytest.mark.usefixtures("computing")
def test_minus_infinity_switches_a_sink_or_an_expert_off(folder, ids):
    poison(folder, f"{LAYER}.self_attn.sinks", "-inf", everywhere=True)
    poison(folder, f"{LAYER}.mlp.router.bias", "-inf")
    assert len(list(load(folder).generate(ids, sampling=GREEDY, max_tokens=4, stop=()))) == 4


@pytest.mark.usefixtures("computing")
@pytest.mark.parametrize("kind", [FullKV, RingKV])
@pytest.mark.parametrize("part", [0, 1])
def test_a_kv_state(demo_folder, ids, kind, part):
    model = load(demo_folder)
    cache = model.make_cache()
    logits = model.prefill(ids, cache)
    mx.eval(logits)
    next(layer for layer in cache.layers if isinstance(layer, kind)).buffers[part][0, 0, 0, 0] = mx.nan
    with pytest.raises(NotFinite):
        list(model.generate([5], cache=cache, sampling=GREEDY, max_tokens=4, stop=()))


def test_a_file_that_is_overwritten_under_a_conversation(folder):
    session = Session(load(folder), sampling=GREEDY, current_date="2026-01-01")
    list(session.send("What is 12 + 30?"))
    said = session.messages
    poison(folder, "lm_head.scales", "nan", everywhere=True)
    with pytest.raises(NotFinite):
        list(session.send("What is 81 - 20?"))
    assert session.messages == said


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "-p", "Hello"),
        ("chat",),
        ("bench", "--prompt", "16", "--generate", "4", "--no-start", "--memory", "300MB"),
        ("eval",),
    ],
    ids=lambda arguments: arguments[0],
)
def test_commands_end_with_a_line_and_1(folder, run, arguments):
    poison(folder, "lm_head.scales", "nan")
    name, *options = arguments
    done = run(name, folder, *options, stdin="Hello\nAnd then?\n" if name == "chat" else "")
    error = done.stderr.strip().split("\n")[-1]
    assert (done.returncode, done.stdout) == (1, "")
    assert error.startswith("error: ")
    assert ("not finite numbers" if name == "eval" else f"`gptoss-mlx verify {folder}`") in error


def test_an_answer_in_json(folder):
    poison(folder, "lm_head.scales", "nan")
    session = Session(load(folder), sampling=GREEDY, response_schema={"type": "object"})
    with pytest.raises(NotFinite):
        list(session.send("Hello"))


def answered_or_refused(folder, picked):
    """Put NaN or infinity at random places of a file; the model must refuse, or compute nothing but numbers."""
    checkpoint = Checkpoint.open(folder)
    name = picked.choice([name for name, tensor in checkpoint.tensors.items() if tensor.dtype in BITS])
    value = picked.choice(list(BITS[checkpoint.tensors[name].dtype]))
    before = checkpoint.file_of[name].read_bytes()
    poison(folder, name, value, everywhere=picked.random() < 0.3, place=picked.random())
    try:
        model = load(folder)
        ids = [picked.randrange(1000) for _ in range(picked.randrange(1, 100))]
        emitted = list(model.generate(ids, sampling=GREEDY, max_tokens=4, stop=()))
        # What each of them was chosen by.
        logits = np.array(model(mx.array([ids + emitted])))[0, len(ids) - 1 : -1]
        assert np.isfinite(logits).all(), (name, value)
        return False
    except GptOssError as error:
        if "NaN or infinity" not in str(error):
            raise
        return True
    finally:
        checkpoint.file_of[name].write_bytes(before)


@pytest.mark.usefixtures("computing")
@pytest.mark.parametrize("count", [2, pytest.param(12, marks=pytest.mark.slow)])
def test_random_places(folder, count):
    picked = random.Random(1)
    refused = [answered_or_refused(folder, picked) for _ in range(count)]
    assert any(refused)


def main(minutes):
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root, "model")
        convert(CHECKPOINT, folder)
        picked, until, refused = random.Random(0), time.monotonic() + 60 * minutes, []
        while time.monotonic() < until:
            with kernels.off() if picked.random() < 0.5 else nullcontext():
                refused.append(answered_or_refused(folder, picked))
        print(f"{len(refused)} models, {sum(refused)} refused, {len(refused) - sum(refused)} computed numbers only")


if __name__ == "__main__":
    main(float(sys.argv[1]))
