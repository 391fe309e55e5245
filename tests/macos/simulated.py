"""A model run as MLX's build for Metal has it run, as far as Python decides that: python simulated.py FOLDER DEVICE.

Started with a library before MLX's that says Metal is available. MLX's device and its facts are those of a Mac, and
adopted memory is copied; arrays stay the CPU's. Prints JSON: an answer in each way to hold a model, and the adopted
bytes.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
from metal_simulation import M2

from gptoss_mlx import Sampling, device, kernels, load
from gptoss_mlx.engine.tokenizer import Tokenizer
from gptoss_mlx.harmony.messages import Conversation, Message
from gptoss_mlx.harmony.render import encode, render
from gptoss_mlx.memory.plan import Device, make_plan

adopted = 0


def adopt(pages: np.ndarray, *, copy: bool) -> mx.array:
    global adopted
    assert not copy
    assert pages.ctypes.data % 4096 == 0  # the largest page that this machine can promise
    assert pages.nbytes % device.METAL_PAGE == 0
    adopted += pages.nbytes
    return mx.array(pages)


def become(name: str) -> None:
    """Take the place of a Mac whose default device is set to `name`."""
    assert mx.metal.is_available()
    mx.from_dlpack = adopt
    if name == "gpu":
        mx.default_device = lambda: mx.Device(mx.DeviceType.gpu)
        mx.device_info = lambda *_: dict(M2)


def answers(folder: Path) -> dict[str, dict[str, object]]:
    settings = make_plan(folder, Device.here()).settings
    beside_gpu = {"cpu_expert_layers": 1} if device.is_gpu() else {}
    ways = {
        "resident": replace(settings, **beside_gpu),
        "paged, 8-bit KV": replace(settings, expert_slots=16, kv_bits=8),
    }
    tokenizer = Tokenizer.load(folder)
    prompt = encode(list(render(Conversation((Message("user", "What is 7 + 8?"),)))), tokenizer)
    made = {}
    for way, way_settings in ways.items():
        before = adopted
        ids = load(folder, way_settings).generate(prompt, sampling=Sampling(temperature=0), max_tokens=12)
        made[way] = {"text": tokenizer.decode(list(ids)), "adopted": adopted - before}
    return made


def refusals() -> list[str]:
    native, made = kernels.compiled(), []
    for call in (lambda: native.map_file(__file__), lambda: native.untouched_memory([2], mx.float32)):
        try:
            made.append(str(call()))
        except RuntimeError as error:
            made.append(f"refused: {error}")
    return made


if __name__ == "__main__":
    become(sys.argv[2])
    print(json.dumps({"refusals": refusals(), "backend": device.backend().name, "answers": answers(Path(sys.argv[1]))}))
