"""Text <-> ids on a tokenizer of the demo's kind: no text becomes a special token, no character is cut."""

import pytest
from hypothesis import given, settings
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


PARTS = [
    *("a", "Word", " word", "it's", "'", " ", "\n", "\r\n", "\t", "1", "42", "!", "?!", "=", "/", "é", "e\u0301"),
    *("漢", "字かな", "A漢a", "😀", "\u200b", "\u00a0", "<|end|>", "\0"),
]


@settings(deadline=None)
@given(parts=st.lists(st.tuples(st.sampled_from(PARTS), st.sampled_from([1, 2, 30, 300, 1000])), max_size=8))
def test_a_long_text_has_the_same_ids_in_pieces(tokenizer, parts):
    text = "".join(part * count for part, count in parts)
    whole = tokenizer.encode(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gptoss_mlx.tokenizer.WINDOW", 200)
        assert tokenizer.encode(text) == whole
        assert tokenizer.encode(text, 10) == whole[:10]


def test_a_word_that_is_longer_than_a_window(demo_folder):
    tokenizer = Tokenizer.load(demo_folder)
    for text in ("conversation" * 20_000, "\u6f22" * 70_000, " " * 200_000, "x " * 100_000):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("gptoss_mlx.tokenizer.WINDOW", len(text))
            assert tokenizer.encode(text) == ids


def test_no_token_is_longer_than_the_longest(demo_folder):
    tokenizer = Tokenizer.load(demo_folder)
    lengths = [len(tokenizer.bytes_of(id_)) for id_ in range(tokenizer.size) if id_ not in tokenizer.specials]
    assert tokenizer.longest == max(lengths)


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
