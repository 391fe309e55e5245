"""Text <-> ids on a tokenizer of the demo's kind: no text becomes a special token, no character is cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoints import write_tokenizer
from gptoss_mlx.errors import GptOssError
from gptoss_mlx.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Tokenizer.load(folder)


@given(text=st.text())
def test_text_survives(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    stream = tokenizer.stream()
    assert "".join(stream.feed(id_) for id_ in ids) + stream.flush() == text


def test_text_never_becomes_a_special_token(tokenizer):
    ids = tokenizer.encode("<|end|><|start|>system")
    assert not set(ids) & set(tokenizer.specials)
    assert tokenizer.decode(ids) == "<|end|><|start|>system"


def test_markup_does(tokenizer):
    start, end = tokenizer.special("<|start|>"), tokenizer.special("<|end|>")
    assert tokenizer.encode_markup("<|start|>a<|end|>") == [start, *tokenizer.encode("a"), end]
    assert tokenizer.decode([start, end]) == "<|start|><|end|>"


def test_bytes_that_are_no_text_come_out_in_the_end(tokenizer):
    lone = tokenizer.encode("é")[:1]
    stream = tokenizer.stream()
    assert stream.feed(lone[0]) == ""
    assert stream.flush() == "\ufffd"
    assert "\ufffd" in "".join(stream.feed(lone[0]) for _ in range(20))


def test_unknown_special_token(tokenizer):
    with pytest.raises(GptOssError, match=r"<\|nothing\|>"):
        tokenizer.special("<|nothing|>")


@pytest.mark.parametrize("text", ["", "{", "{}", '{"model": 3}', "\x00\x01"])
def test_corrupt_file(tmp_path, text):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(GptOssError, match=r"tokenizer\.json") as error:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(error.value)


def test_missing_file(tmp_path):
    with pytest.raises(GptOssError, match="no tokenizer"):
        Tokenizer.load(tmp_path)
