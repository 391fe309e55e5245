"""Paged experts and KV in 8 bits, on small models: the same bits, the same words, the same memory."""

import json
import random
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from budget.cgroup import run_limited, why_not
from budget.shapes import PUBLISHED, converted_shape
from checkpoints import config_of, write_checkpoint
from conversations import Generator
from evaluate import THRESHOLDS, examine
from gptoss_convert import convert
from gptoss_mlx import GptOssError, Sampling, Session, kernels, load
from gptoss_mlx.chat.turn import Dropped, TurnStats
from gptoss_mlx.engine.generate import ContextFull
from gptoss_mlx.engine.tokenizer import Tokenizer
from gptoss_mlx.harmony.parse import Content
from gptoss_mlx.harmony.render import encode
from gptoss_mlx.memory.plan import BudgetTooSmall, Device, EngineConfig, make_plan
from gptoss_mlx.model import checkpoint
from gptoss_mlx.model.checkpoint import Checkpoint, CheckpointError
from gptoss_mlx.model.expert_pool import SlotTable

FILL = Path(__file__).with_name("fill.py")
WHOLE = EngineConfig(context=4096, kv_bits=16, prefill_chunk=64)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("paging")
    source = write_checkpoint(root / "source", config_of(hidden_size=256, intermediate_size=192))
    return {recipe: convert_to(source, root / recipe, recipe) for recipe in ("mxfp4-q4", "q4")}


def convert_to(source, folder, recipe):
    convert(source, folder, recipe)
    return folder


def outputs(folder, settings):
    """Logits of a prompt in chunks, and of some tokens behind it."""
    model, cache = load(folder, settings), None
    cache = model.make_cache()
    ids = random.Random(4).choices(range(250), k=200)
    rows = [
        model(mx.array([ids[i : i + settings.prefill_chunk]]), cache) for i in range(0, 200, settings.prefill_chunk)
    ]
    rows += [model(mx.array([[id_]]), cache) for id_ in ids[:12]]
    return model, np.concatenate([np.array(each[0].astype(mx.float32)) for each in rows])


@pytest.mark.parametrize("recipe", ["mxfp4-q4", "q4"])
@pytest.mark.parametrize("slots", [4, 11, 32])
def test_the_same_bits(folders, computing, recipe, slots):
    _, right = outputs(folders[recipe], WHOLE)
    model, got = outputs(folders[recipe], replace(WHOLE, expert_slots=slots))
    assert (got == right).all()
    stats = model.expert_stats
    assert stats.bytes_read == stats.missed * model.network.pool.expert_bytes
    assert stats.missed == 32 if slots == 32 else stats.missed > 32


def test_experts_on_the_cpu_beside_a_gpu(folders):
    """Here the GPU is a CPU too: the same kernels, and activations that come and go in another type."""
    if not kernels.native():
        pytest.skip(kernels.why_not_native())
    _, right = outputs(folders["mxfp4-q4"], WHOLE)
    model, got = outputs(folders["mxfp4-q4"], replace(WHOLE, cpu_expert_layers=2))
    assert (got == right).all()
    layer = model.network.layers[-1].moe
    x = mx.random.normal((1, 3, 256))
    assert layer(x.astype(mx.bfloat16)).dtype == mx.bfloat16
    with kernels.off(), pytest.raises(GptOssError, match="need the compiled kernels"):
        load(folders["mxfp4-q4"], replace(WHOLE, cpu_expert_layers=2))


def test_where_nothing_can_be_read_around_the_page_cache(folders, monkeypatch):
    """As on tmpfs, or on a disk with large blocks."""
    from gptoss_mlx.model.direct_io import DirectFiles

    _, right = outputs(folders["mxfp4-q4"], WHOLE)
    for name, value in (("DIRECT", 0), ("BLOCK", 2**20)):
        with monkeypatch.context() as patch:
            patch.setattr(DirectFiles, name, value)
            _, got = outputs(folders["mxfp4-q4"], replace(WHOLE, expert_slots=6))
        assert (got == right).all()


def test_an_interrupted_fetch_leaves_the_pool_whole(folders):
    model, right = outputs(folders["mxfp4-q4"], replace(WHOLE, expert_slots=8))
    for count in range(3):
        fetch = model.network.pool.fetch(1, np.array([[0, 1, 2, 3], [4, 5, 6, 7]]))
        for _ in range(count):
            next(fetch)
        fetch.close()
    cache = model.make_cache()
    ids = random.Random(4).choices(range(250), k=200)
    assert (np.array(model(mx.array([ids[:64]]), cache)[0].astype(mx.float32)) == right[:64]).all()


def test_a_file_that_shrinks_is_an_error_and_the_pool_goes_on(folders, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(folders["mxfp4-q4"], folder)
    model = load(folder, replace(WHOLE, expert_slots=8))
    ids = mx.array([[1, 2, 3, 4]])
    right = np.array(model(ids).astype(mx.float32))
    list(model.network.pool.fetch(0, np.arange(8)[None]))  # layer 3 leaves the slots
    opened = Checkpoint.open(folder)
    name = "model.layers.3.mlp.experts.down_proj.weight"
    path, start = opened.file_of[name], opened.tensors[name].start
    whole = path.read_bytes()
    with path.open("r+b") as file:  # the same file, which the pool has open
        file.truncate(start)
        with pytest.raises(CheckpointError, match="shorter"):
            list(model.network.pool.fetch(3, np.arange(8)[None]))
        file.write(whole)
    assert (np.array(model(ids).astype(mx.float32)) == right).all()


def test_the_least_used_leave():
    table = SlotTable(layers=2, experts=4, slots=3)

    def use(layer, expert):
        table.use(layer, np.bincount([expert], minlength=4), 1)
        if table.find(layer, np.array([expert]))[0] < 0:
            (slot,) = table.vacate(1)
            table.fill(slot, layer, expert)
            table.release()

    for layer, expert in [(0, 1), (0, 1), (1, 1), (1, 1), (1, 2), (0, 3)]:
        use(layer, expert)
    assert table.find(0, np.arange(4)).tolist()[1] >= 0
    assert table.find(1, np.arange(4)).tolist()[1] >= 0
    assert table.find(1, np.arange(4)).tolist()[2] < 0  # used once, before the last
    assert table.find(0, np.arange(4)).tolist()[3] >= 0
    table.hold([0, 1])
    assert table.vacate(3) == [2]
    assert table.vacate(3) == []


def test_experts_in_other_forms_are_refused(folders, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(folders["mxfp4-q4"], folder)
    shutil.copytree(folders["q4"], tmp_path / "other")
    # Layer 3 of one folder beside the others of another.
    config = json.loads((folder / "config.json").read_text())
    other = json.loads((tmp_path / "other" / "config.json").read_text())
    names = [name for name in config["quantization"] if "layers.3.mlp.experts" in name]
    for name in names:
        config["quantization"][name] = {k: other["quantization"][k] for k in ("group_size", "bits", "mode")}
    (folder / "config.json").write_text(json.dumps(config))
    arrays = {
        n: Checkpoint.open(folder).array(n) for n in Checkpoint.open(folder).tensors if "layers.3.mlp.experts" not in n
    }
    arrays |= {
        n: Checkpoint.open(tmp_path / "other").array(n)
        for n in Checkpoint.open(tmp_path / "other").tensors
        if "layers.3.mlp.experts" in n
    }
    mx.eval(arrays)
    for path in folder.glob("model*"):
        path.unlink()
    mx.save_safetensors(str(folder / "model.safetensors"), arrays)
    assert load(folder)(mx.array([[1, 2]])).shape == (1, 2, 320)
    with pytest.raises(CheckpointError, match="layer 3 stores its experts in another form"):
        load(folder, replace(WHOLE, expert_slots=8))


def test_a_slice_of_120b_runs_paged(tmp_path):
    """Four layers of 128 experts, in the real width: weights are zeros, the paging is real."""
    folder = converted_shape(tmp_path / "model", 4, 128, vocab_size=1024)
    plan = make_plan(folder, Device("a test", 2 * 10**9, None, "kernels"), context=1024)
    model = load(folder, plan.settings)
    assert 8 <= plan.settings.expert_slots < 512
    logits = model(mx.array([[1, 2, 3]]))
    assert logits.shape == (1, 3, 1024)
    assert not mx.isnan(logits).any()
    assert model.expert_stats.missed > 0
    assert model.network.pool.expert_bytes == 3 * (PUBLISHED["hidden_size"] ** 2 * 17 // 32 + 2880 * 2)


def samples(generator, tokenizer, tasks, each):
    for task in tasks:
        for _ in range(each):
            sample = generator.sample(task)
            yield encode(sample.segments[0], tokenizer), encode(sample.segments[1], tokenizer)


def test_8_bits_cost_little(demo_folder, computing):
    """The distribution of the next token, over answers of the demo model: mean KL below 1e-3 nats."""
    exact, tokenizer = load(demo_folder, WHOLE), Tokenizer.load(demo_folder)
    model = load(demo_folder, replace(WHOLE, kv_bits=8))
    divergences = []
    for prompt, answer in samples(Generator(5, held_out=True), tokenizer, ("arithmetic", "project", "recall"), 4):
        logits = [m(mx.array([prompt + answer]))[0].astype(mx.float32) for m in (model, exact)]
        got, right = (np.array(each - mx.logsumexp(each, axis=-1, keepdims=True)) for each in logits)
        divergences.append((np.exp(right) * (right - got)).sum(-1)[len(prompt) - 1 :].mean())
    assert np.mean(divergences) < 1e-3


def test_8_bits_recall_as_well(demo_folder):
    model = load(demo_folder, replace(WHOLE, kv_bits=8))
    outcomes = [ok for _, ok, _ in examine(model, Tokenizer.load(demo_folder), "recall", 25)]
    assert sum(outcomes) >= THRESHOLDS["recall"] * len(outcomes)


@pytest.mark.parametrize("bits", [8, 16])
def test_keys_and_values_grow_to_the_context_and_no_further(demo_folder, bits):
    model = load(demo_folder, EngineConfig(context=700, kv_bits=bits, prefill_chunk=64))
    cache = model.make_cache()
    ids = [1 + i % 1000 for i in range(699)]
    mx.eval(model.prefill(ids, cache))
    assert {layer.buffers[0].shape[2] for layer in cache.layers} == {128, 700}
    list(model.generate([5], cache=cache, stop=(), sampling=Sampling(temperature=0), max_tokens=50))
    assert cache.offset == 700
    with pytest.raises(ContextFull, match=r"1 tokens after 700 exceed this run's context of 700"):
        model.prefill([1], cache)
    sizes = {8: 68, 16: 256 if not kernels.native() else 128}
    full = model.config.layer_types.count("full_attention")
    heads = model.config.num_kv_heads
    assert sum(b.nbytes for layer in cache.layers if layer.buffers[0].shape[2] == 700 for b in layer.buffers) == (
        full * 2 * heads * 700 * sizes[bits]
    )


def test_8_bits_need_a_head_that_is_a_group(tmp_path):
    source = write_checkpoint(tmp_path / "source", config_of(head_dim=96))
    convert(source, tmp_path / "model")
    with pytest.raises(GptOssError, match="head"):
        make_plan(tmp_path / "model", Device.here(), kv_bits=8)


class TestWhenTheContextIsFull:
    def session(self, demo_folder, **more):
        model = load(demo_folder, replace(WHOLE, context=600))
        return Session(model, sampling=Sampling(temperature=0), max_tokens=120, instructions="Be kind.", **more)

    def test_the_oldest_turns_are_dropped_and_it_is_said(self, demo_folder):
        session = self.session(demo_folder, drop_when_full=True)
        dropped = right = 0
        for a in range(110, 126):
            events = list(session.send(f"What is {a} + {2 * a}?"))
            dropped += sum(event.messages for event in events if isinstance(event, Dropped))
            assert session.context_used <= 600
            text = "".join(event.text for event in events if isinstance(event, Content))
            right += text == f"{a} + {2 * a} = {3 * a}"
            # What was dropped leaves no trace: the answer, right or not, is that of a conversation that begins here.
            fresh = self.session(demo_folder).send(f"What is {a} + {2 * a}?")
            assert text == "".join(event.text for event in fresh if isinstance(event, Content))
            assert isinstance(events[-1], TurnStats)
        assert right == 16
        assert dropped > 0
        assert session.messages[0].role == "user"
        assert session.instructions == "Be kind."

    def test_or_refused(self, demo_folder):
        session = self.session(demo_folder)

        def talk():
            for a in range(110, 126):
                list(session.send(f"What is {a} + {2 * a}?"))

        with pytest.raises(ContextFull):
            talk()
        kept = session.messages
        with pytest.raises(ContextFull):
            list(session.send("What is 1 + 1? " * 200))
        assert session.messages == kept

    def test_one_message_that_is_too_long_is_refused(self, demo_folder):
        session = self.session(demo_folder, drop_when_full=True)
        list(session.send("What is 1 + 2?"))
        kept = session.messages
        with pytest.raises(ContextFull):
            list(session.send("What is 1 + 1? " * 200))
        assert session.messages == kept

    def test_in_the_chat(self, run, demo_folder):
        said = "".join(f"What is {a} + {2 * a}?\n" for a in range(110, 126))
        options = ("--temperature", 0, "--context", 600, "--max-tokens", 120)
        result = run("chat", demo_folder, *options, "--when-full", "drop", stdin=said)
        assert "the context is full: the" in result.stderr
        assert result.stdout.splitlines()[-1] == "125 + 250 = 375"
        refused = run("chat", demo_folder, *options, stdin=said + "What is 1 + 1? " * 100)
        assert "stopped: the context is full" in refused.stderr
        assert "exceed this run's context of 600: /undo removes" in refused.stderr


def test_stats_tell_about_paging(run, demo_folder):
    with pytest.raises(BudgetTooSmall) as caught:
        make_plan(demo_folder, Device.here(), memory=2**20, context=1024)
    options = ("--memory", str(caught.value.smallest + 100_000), "--context", 1024)
    stats = run("chat", demo_folder, *options, "--max-tokens", 5, stdin="Hello\n/stats\n")
    assert "experts: " in stats.stderr


def test_more_memory_than_there_is_is_said(run, tmp_path):
    """A context of which the machine has no room: nothing of it is taken before it is used."""
    source = write_checkpoint(tmp_path / "source", config_of(max_position_embeddings=2**30))
    convert(source, tmp_path / "model")
    result = run("generate", tmp_path / "model", "-p", "Hi", "--memory", "900TB", "--context", 2**30, "--max-tokens", 1)
    assert "warning: " in result.stderr
    assert "and this machine has " in result.stderr


def test_windows_on_a_file_are_whole_pages(demo_folder, monkeypatch):
    """As Metal adopts them: each tensor in a buffer of its own, of whole pages."""
    sizes = []

    def adopt(pages, copy):
        assert copy is False
        assert pages.ctypes.data % 4096 == 0  # the largest page that this machine can promise
        assert pages.nbytes % checkpoint.METAL_PAGE == 0
        sizes.append(pages.nbytes)
        return mx.array(pages)

    monkeypatch.setattr(mx, "from_dlpack", adopt)
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.DeviceType.gpu))
    opened = Checkpoint.open(demo_folder)
    for name in opened.tensors:
        bits = opened.array(name)
        bits = bits.view(mx.uint16) if bits.dtype == mx.bfloat16 else bits
        assert np.array_equal(np.array(bits), opened.view(name))
    largest = max(tensor.nbytes for tensor in opened.tensors.values())
    assert max(sizes) <= largest + 2 * checkpoint.METAL_PAGE


def test_under_a_limit_of_the_kernel(demo_folder):
    """The demo in as little as its plan asks for: not killed, and never above the plan."""
    if reason := why_not():
        pytest.skip(reason)
    plan = make_plan(demo_folder, Device.here(), context=2048)
    command = [sys.executable, str(FILL), str(demo_folder), "--memory", str(plan.total), "--context", "2048"]
    result = run_limited(command, plan.total + 40_000_000, cwd=FILL.parent.parent)  # the files of Python itself
    assert result.returncode == 0, result.stderr
    figures = json.loads(result.stdout)
    assert figures["decoded"] == 64
    assert figures["anonymous"] <= figures["plan"]["anonymous"]


def test_memory_does_not_grow_over_many_turns(demo_folder):
    from gptoss_mlx.memory.system import proc_bytes

    if not proc_bytes("self/status"):
        pytest.skip("this system does not tell what a process takes")
    plan = make_plan(demo_folder, Device.here(), context=512)
    model = load(demo_folder, plan.settings)
    session = Session(model, sampling=Sampling(temperature=0), max_tokens=40, drop_when_full=True)
    sizes = []
    for turn in range(40):
        list(session.send(f"What is {turn} + 5?"))
        sizes.append(proc_bytes("self/status")["RssAnon"])
    assert max(sizes[30:]) <= max(sizes[10:20]) * 1.02 + 2_000_000  # a process full of tests is less tidy than a chat
