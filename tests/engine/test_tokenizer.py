"""Text <-> ids on a tokenizer of the demo's kind: no text becomes a special token, no character is cut."""

import json
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoints import write_tokenizer
from gptoss_mlx.engine.panics import library_errors
from gptoss_mlx.engine.tokenizer import Tokenizer
from gptoss_mlx.errors import GptOssError


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


@given(parts=st.lists(st.tuples(st.sampled_from(PARTS), st.sampled_from([1, 2, 30, 300, 1000])), max_size=8))
def test_a_long_text_has_the_same_ids_in_pieces(tokenizer, parts):
    text = "".join(part * count for part, count in parts)
    whole = tokenizer.encode(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gptoss_mlx.engine.tokenizer.WINDOW", 200)
        assert tokenizer.encode(text) == whole
        assert tokenizer.encode(text, 10) == whole[:10]


def test_a_word_that_is_longer_than_a_window(demo_folder):
    tokenizer = Tokenizer.load(demo_folder)
    for text in ("conversation" * 1_200, "\u6f22" * 7_000, " " * 14_000, "x " * 7_000):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("gptoss_mlx.engine.tokenizer.WINDOW", 6_500)
            ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.encode(text) == ids  # at once


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


CUT = {"vocab": {"a": 0, "é": 1, "aé": 2}, "continuing_subword_prefix": "x", "merges": [["a", "é"]]}
PANICS = {
    "a character map": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    "no character map": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": ""}},
    "a prefix that is longer than the token": {"model": {"type": "BPE", **CUT, "continuing_subword_prefix": "xyz"}},
    "a prefix that ends within a character": {"model": {"type": "BPE", **CUT}},
}


@pytest.mark.parametrize("case", PANICS)
def test_a_panic_of_the_library_is_an_error_of_one_line(tmp_path, capfd, case):
    write_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | PANICS[case]))
    with pytest.raises(GptOssError, match=r"^cannot read .*tokenizer\.json: ") as error:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(error.value)
    assert capfd.readouterr().err == ""


def test_a_prefix_by_another_spelling_of_its_name(tmp_path):
    """The library would end the process."""
    write_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    text = json.dumps(json.loads(path.read_text()) | {"model": {"type": "BPE", **CUT}})
    path.write_text(text.replace("continuing_subword", "continuing\\u005fsubword"))
    with pytest.raises(GptOssError, match="has no continuing_subword_prefix"):
        Tokenizer.load(tmp_path)
    text = json.dumps(json.loads(text) | {"model": {"type": "BPE", "vocab": {"\x41": 0}, "merges": []}})
    path.write_text(text.replace("A", "\\u0041"))
    assert Tokenizer.load(tmp_path).encode("A") == [0]


def test_what_others_write_to_standard_error_while_a_library_is_at_work(capfd):
    with library_errors("it"):
        os.write(2, b"a warning\n")
    assert capfd.readouterr().err == "a warning\n"


def test_what_is_written_before_an_error_that_is_no_panic(capfd):
    def fails():
        os.write(2, b"a reason\n")
        raise ValueError("too bad")

    with pytest.raises(GptOssError, match="it: too bad"), library_errors("it"):
        fails()
    assert capfd.readouterr().err == "a reason\n"


def test_without_standard_error(tmp_path):
    write_tokenizer(tmp_path)
    code = "import os, sys; from pathlib import Path; from gptoss_mlx.engine.tokenizer import Tokenizer; os.close(2)"
    code += "; print(Tokenizer.load(Path(sys.argv[1])).encode('ab'))"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert len(json.loads(done.stdout)) == 2


def test_missing_file(tmp_path):
    with pytest.raises(GptOssError, match="no tokenizer"):
        Tokenizer.load(tmp_path)
