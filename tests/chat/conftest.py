"""The embedded model, the words that a test wants it to say, and a store for its conversations."""

import pytest

import gptoss_mlx
from chat.conversing import Scripted
from gptoss_mlx.chat import answer as chat_answer
from gptoss_mlx.chat.store import Store
from gptoss_mlx.engine.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def model(demo_folder):
    return gptoss_mlx.load(demo_folder)


@pytest.fixture
def script(model, monkeypatch):
    """Let the model write this markup."""

    def prepare(text):
        monkeypatch.setattr(chat_answer, "Sampler", Scripted)
        Scripted.waiting = Tokenizer.load(model.path).encode_markup(text)
        return Scripted.waiting

    yield prepare
    assert not Scripted.waiting


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "sessions")
