"""Perplexity and divergence, against logits of the same windows in float64, and against MLX-LM."""

import math

import mlx.core as mx
import numpy as np
import pytest

from gptoss_convert import convert
from gptoss_mlx import GptOssError, load
from gptoss_mlx.demo import CHECKPOINT
from gptoss_mlx.engine.builtin_text import TEXT
from gptoss_mlx.engine.tokenizer import Tokenizer
from gptoss_mlx.evaluation.text import LogProbabilities, Text, counted, cut, log_probabilities, log_softmax
from gptoss_mlx.memory.plan import EngineConfig

WINDOW = 100


def unheard(count):
    pass


@pytest.fixture(scope="module")
def exact_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exact") / "model"
    convert(CHECKPOINT, folder, "mxfp4-bf16")
    return folder


@pytest.fixture(scope="module")
def tokenizer(demo_folder):
    return Tokenizer.load(demo_folder)


@pytest.fixture(scope="module")
def text(tokenizer):
    return Text("a text", TEXT.read_text(), tokenizer, window=WINDOW, max_tokens=350)


def predictions(model, ids):
    """float64 logarithms behind ids[n/2] and all that follow but the last."""
    logits = np.array(model(mx.array([ids[:-1]]))[0].astype(mx.float32)).astype(np.float64)[len(ids) // 2 :]
    logits -= logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def test_perplexity_and_divergence(demo_folder, exact_folder, text, tmp_path):
    model, exact = load(demo_folder), load(exact_folder)
    written = LogProbabilities(tmp_path / "predictions", text.windows, model.config.vocab_size)
    assert not written.exists
    written.make()
    for index in range(len(text.windows)):
        written.measure(exact, index, unheard)
    assert written.exists
    text.compare_with("exact", written)
    found = text.results({index: text.measure(model, index, unheard) for index in range(3)})

    nll, kl, same = [], [], []
    for ids in text.windows:
        log_p, log_q = predictions(exact, ids), predictions(model, ids)
        nll.append(-log_q[np.arange(len(log_q)), ids[WINDOW // 2 + 1 :]])
        kl.append((np.exp(log_p) * (log_p - log_q)).sum(axis=-1))
        same.append(log_p.argmax(axis=-1) == log_q.argmax(axis=-1))
    nll, kl, same = map(np.concatenate, (nll, kl, same))
    assert found.tokens == len(nll) == 3 * 49
    assert (found.windows, found.of_windows, found.window) == (3, 3, WINDOW)
    assert math.log(found.perplexity) == pytest.approx(nll.mean(), rel=1e-6)
    assert found.standard_error == pytest.approx(found.perplexity * nll.std(ddof=1) / math.sqrt(len(nll)), rel=1e-5)
    assert found.divergence.kl_mean == pytest.approx(kl.mean(), rel=1e-4)
    assert found.divergence.kl_p99 == pytest.approx(np.percentile(kl, 99), rel=1e-4)
    assert found.divergence.same_top == same.mean()
    assert 0.1 < found.divergence.kl_mean < 2


def test_a_model_does_not_diverge_from_itself(demo_folder, tokenizer, tmp_path):
    text, model = Text("a text", TEXT.read_text(), tokenizer, window=WINDOW, max_tokens=WINDOW), load(demo_folder)
    written = LogProbabilities(tmp_path / "predictions", text.windows, model.config.vocab_size)
    written.make()
    written.measure(model, 0, unheard)
    text.compare_with("itself", written)
    found = text.results({0: text.measure(model, 0, unheard)}).divergence
    assert (found.kl_mean, found.kl_p99, found.same_top) == (0, 0, 1)


def test_as_mlx_lm_predicts(demo_folder, tokenizer):
    """Closely: MLX-LM rounds the ends of YaRN's ramp, and computes in other numbers."""
    from mlx_lm.utils import load_model

    ids = tokenizer.encode(TEXT.read_text())[:WINDOW]
    peer, _ = load_model(demo_folder)
    following = ids[WINDOW // 2 + 1 :]
    theirs = -predictions(peer, ids)[np.arange(len(following)), following].mean()
    text = Text("a text", TEXT.read_text(), tokenizer, window=WINDOW, max_tokens=WINDOW)
    ours = text.results({0: text.measure(load(demo_folder), 0, unheard)})
    assert math.log(ours.perplexity) == pytest.approx(theirs, rel=0.02)


@pytest.mark.parametrize("chunk", [7, 64, 128])
def test_a_window_is_read_in_the_chunks_of_the_plan(demo_folder, text, chunk):
    ids = text.windows[0]
    model = load(demo_folder, EngineConfig(context=WINDOW, kv_bits=16, prefill_chunk=chunk))
    heard = []
    parts = list(log_probabilities(model, ids, heard.append))
    assert heard == [*range(chunk, WINDOW - 1, chunk), WINDOW - 1]
    assert [at for at, _ in parts] == np.cumsum([0, *(len(rows) for _, rows in parts)])[:-1].tolist()
    found = np.concatenate([rows for _, rows in parts])
    assert len(found) == counted(WINDOW)
    # Near each other, not the same: a router may choose otherwise where two experts are as good as each other.
    assert np.abs(found - predictions(model, ids)).mean() < 0.01


def test_what_is_cut():
    ids = list(range(11))
    assert cut(ids, 4) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert cut(ids, 100) == [ids]
    assert [counted(length) for length in (4, 5, 512)] == [1, 2, 255]
    with pytest.raises(GptOssError, match="3 tokens"):
        cut(ids[:3], 4)


def test_one_token_has_no_standard_error(tokenizer):
    found = Text("a text", TEXT.read_text(), tokenizer, window=4).results({0: {"nll": [2.0]}})
    assert (found.perplexity, found.standard_error) == (pytest.approx(math.exp(2)), None)


def test_a_model_that_is_corrupt(text):
    for wrong in (np.nan, np.inf, -np.inf):
        with pytest.raises(GptOssError, match="not finite"):
            log_softmax(np.array([[0, wrong]], np.float32))
    with pytest.raises(GptOssError, match="absurdly large"):
        text.results({0: {"nll": [1000.0, 800.0]}})
