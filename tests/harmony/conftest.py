import pytest

from checkpoints import write_tokenizer
from gptoss_mlx.engine.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    """A tokenizer of single bytes with the Harmony special tokens under their real names."""
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Tokenizer.load(folder)
