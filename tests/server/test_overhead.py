"""What HTTP and server-sent events add to a token: by the clock."""

import json
import shutil
import time
from statistics import median

import httpx
import pytest

import gptoss_mlx
from gptoss_mlx import Sampling
from gptoss_mlx.chat.raw_answer import RawAnswer
from gptoss_mlx.chat.request import AnswerRequest
from gptoss_mlx.chat.turn import Waiting
from gptoss_mlx.engine.prompt_cache import PromptCache
from gptoss_mlx.harmony.messages import conversation_from_json

from .test_load import WAIT, server

pytestmark = pytest.mark.timing

PROMPT = "Tell me all that you know about everything, in many words, one after the other: "
TOKENS = 400


@pytest.fixture
def endless(demo_folder, tmp_path):
    """The demo, for which no token ends an answer."""
    folder = tmp_path / "endless"
    shutil.copytree(demo_folder, folder)
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(settings | {"eos_token_id": [300]}))
    return folder


def alone(model):
    """Seconds from the first token to the last."""
    asked = AnswerRequest(
        conversation_from_json({"messages": []}), Sampling(temperature=0.7, seed=3), max_tokens=TOKENS
    )
    times = [
        time.perf_counter()
        for event in RawAnswer(model.tokenizer.encode(PROMPT), asked, model).write(PromptCache(model))
        if isinstance(event, Waiting)
    ]
    assert len(times) == TOKENS
    return times[-1] - times[0]


def over_http(http):
    """Seconds from the first bytes to the last."""
    options = {"temperature": 0.7, "seed": 3, "max_tokens": TOKENS, "stream": True}
    with http.stream("POST", "/v1/completions", json={"model": "m", "prompt": PROMPT} | options) as response:
        times = [time.perf_counter() for _ in response.iter_raw()]
    return times[-1] - times[0]


def test_a_token_over_http_takes_as_long_as_in_the_same_process(endless, environment, monkeypatch):
    monkeypatch.setenv("GPTOSS_MLX_THREADS", "1")
    model = gptoss_mlx.load(endless)
    with (
        server(endless, environment | {"GPTOSS_MLX_THREADS": "1"}) as (_, url),
        httpx.Client(base_url=url, timeout=WAIT) as http,
    ):
        over_http(http)
        ratios = [over_http(http) / alone(model) for _ in range(41)]
    print(f"{median(ratios):.3f}")
    assert median(ratios) < 1.03
