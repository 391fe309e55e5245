"""How many kernels a GPU launches for one token: of this engine, and of MLX-LM's own model on the same folder."""

from __future__ import annotations

import mlx.core as mx
import pytest

from checkpoints import config_of, write_checkpoint
from gptoss_convert import convert
from gptoss_mlx import device, load
from gptoss_mlx.memory.plan import EngineConfig
from gptoss_mlx.model.experts import swiglu
from gptoss_mlx.model.network import attention_weights
from model.launches import fast_operations, launches


@pytest.fixture(scope="module", params=["mxfp4-q4", pytest.param("q4", marks=pytest.mark.slow)])
def folder(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("launches")
    source = write_checkpoint(root / "source", config_of(), shards=1)
    convert(source, root / "model", request.param)
    return root / "model"


@pytest.fixture
def on_a_gpu(monkeypatch):
    monkeypatch.setattr(device, "is_gpu", lambda: True)


def counted(network, cache) -> int:
    """Launches of one token, after others."""
    mx.disable_compile()  # a CPU would need a C++ compiler to run what a GPU fuses
    try:
        for ids in ([1, 2, 3], [4]):
            mx.eval(network(mx.array([ids]), cache))
    finally:
        mx.enable_compile()
    with fast_operations():
        return launches(network(mx.array([[5]]), cache)).total()


def ours(folder, kv_bits=16) -> float:
    """Launches of each layer, without the embedding, whose row the CPU looks up, the last norm and the head."""
    model = load(folder, EngineConfig(context=256, kv_bits=kv_bits, prefill_chunk=64))
    return (counted(model, model.make_cache()) - 3) / model.config.num_layers


def of_mlx_lm(folder) -> float:
    """The same. MLX-LM gathers codes, scales and biases of an embedding before it dequantizes them."""
    from mlx_lm.utils import load_model

    model, _ = load_model(folder)
    return (counted(model, model.make_cache()) - 6) / len(model.layers)


@pytest.mark.usefixtures("on_a_gpu")
def test_two_thirds_of_mlx_lm(folder):
    assert ours(folder) == 22
    assert ours(folder) <= 2 / 3 * of_mlx_lm(folder)


@pytest.mark.usefixtures("on_a_gpu")
def test_an_8_bit_kv_cache(folder):
    """Half of the layers have one: two launches quantize, six store, and five attend where one did."""
    assert ours(folder, kv_bits=8) == 22 + (2 + (6 - 2) + (5 - 1)) / 2


def test_what_is_counted():
    """What the counts above rest on: the placeholders are one primitive each, and views are none."""
    x, weight = mx.ones((1, 4)), mx.ones(4)
    mx.eval(x, weight)
    with fast_operations():
        y = mx.fast.rms_norm(x, weight, 1e-5)
        both = mx.concatenate([y, x + 1])[:1].reshape(4, 1).swapaxes(0, 1)
    assert launches(both) == {"Depends": 1, "Add": 1, "Concatenate": 2}


@pytest.mark.usefixtures("on_a_gpu")
def test_a_folder_in_another_order(folder, tmp_path):
    """As MLX-LM saves it, by name: it works as before, with more launches; still no more than MLX-LM's."""
    for path in folder.iterdir():
        if path.suffix != ".safetensors" and path.name != "model.safetensors.index.json":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = {name: tensor for path in folder.glob("*.safetensors") for name, tensor in mx.load(str(path)).items()}
    mx.save_safetensors(str(tmp_path / "model.safetensors"), dict(sorted(tensors.items())))
    assert 22 < ours(tmp_path) < of_mlx_lm(folder)


@pytest.mark.slow  # MLX calls a C++ compiler for each chain
@pytest.mark.usefixtures("on_a_gpu")
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float32])
def test_fused_chains_compute_the_same(dtype):
    """To the bit: each step is rounded as it is where a kernel of its own computes it."""
    mx.random.seed(2)

    def drawn(*shape):
        return mx.random.normal(shape).astype(dtype) * 5

    swiglu_of = drawn(4, 1, 96), drawn(4, 1, 96), drawn(4, 1, 96), drawn(4, 1, 96), 7.0
    assert mx.array_equal(swiglu(*swiglu_of), swiglu.__wrapped__(*swiglu_of))
    products, terms = drawn(1, 2, 8, 30), mx.random.normal((1, 2, 8, 1))
    unseen = mx.arange(30) > mx.arange(8)[:, None]
    for hidden in (None, unseen):
        weights_of = products, 0.125, hidden, drawn(1, 2, 8, 1), terms
        assert mx.allclose(attention_weights(*weights_of), attention_weights.__wrapped__(*weights_of), rtol=1e-2)
