"""The browser over a folder: what pages look like to the model, what is found, and which calls are refused."""

import inspect
import os
import subprocess
import sys

import pytest

from gptoss_mlx.errors import GptOssError
from gptoss_mlx.tools.browser import VIEW_BYTES, Browser
from gptoss_mlx.tools.search import MAX_BYTES
from tools.browsing import find, found, lines_of, open_, search

# What the model sees: the displays of openai/gpt-oss's browser, with paths for URLs.


def test_search_open_scroll_find(browser):
    assert (browser.name, browser.asks) == ("browser", False)
    assert search(browser, "Timeout seconds") == (
        "[0] Timeout seconds\n"
        "**viewing lines [0 - 5] of 5**\n"
        "\n"
        "L0: \n"
        "L1: URL: \n"
        "L2: # Search Results\n"
        "L3: \n"
        "L4:   * 【0†notes one.md】 The timeout is thirty seconds, and this line is long enough\n"
        "L5:  that it has to be wrapped."
    )
    assert open_(browser, id=0, cursor=0) == (
        "[1] notes one.md (notes one.md)\n"
        "**viewing lines [0 - 7] of 7**\n"
        "\n"
        "L0: \n"
        "L1: URL: notes one.md\n"
        "L2: # Notes\n"
        "L3:         The timeout is thirty seconds, and this line is long enough that it has \n"
        "L4: to be wrapped.\n"
        "L5: \n"
        "L6: Nothing here.\n"
        "L7: A Timeout again."
    )
    assert open_(browser, loc=5, num_lines=2) == (
        "[2] notes one.md (notes one.md)\n**viewing lines [5 - 6] of 7**\n\nL5: \nL6: Nothing here."
    )
    assert find(browser, "TIMEOUT") == (
        "[3] Find results for text: `TIMEOUT` in `notes one.md` (notes one.md/find?pattern=TIMEOUT)\n"
        "**viewing lines [0 - 7] of 7**\n"
        "\n"
        "L0: # 【0†match at L3】\n"
        "L1:         The timeout is thirty seconds, and this line is long enough that it has \n"
        "L2: to be wrapped.\n"
        "L3: \n"
        "L4: Nothing here.\n"
        "L5: \n"
        "L6: # 【1†match at L7】\n"
        "L7: A Timeout again."
    )
    assert open_(browser, id=1) == (
        "[4] notes one.md (notes one.md)\n"
        "**viewing lines [3 - 7] of 7**\n"
        "\n"
        "L3:         The timeout is thirty seconds, and this line is long enough that it has \n"
        "L4: to be wrapped.\n"
        "L5: \n"
        "L6: Nothing here.\n"
        "L7: A Timeout again."
    )


def test_html(browser):
    assert open_(browser, id="docs/page.html") == (
        "[0] A & page (docs/page.html)\n"
        "**viewing lines [0 - 17] of 17**\n"
        "\n"
        "L0: \n"
        "L1: URL: docs/page.html\n"
        "L2: # Heading\n"
        "L3: \n"
        "L4: See 【0†the other page】, 【0†again】, 【1†the ‡notes】, elsewhere, up, nothing.\n"
        "L5: \n"
        "L6:   * one\n"
        "L7:   * two\n"
        "L8: \n"
        "L9: x\n"
        "L10: \n"
        "L11:   as   it\n"
        "L12:     is\n"
        "L13: \n"
        "L14:  a b\n"
        "L15:  c\n"
        "L16: \n"
        "L17: End 〖0†fake〗"
    )
    assert open_(browser, id=1).startswith("[1] notes one.md (notes one.md)\n")
    assert open_(browser, id=0, cursor=0).endswith("L2: Other")
    assert find(browser, "other page", cursor=0).endswith(
        "L1: See the other page, again, the ‡notes, elsewhere, up, nothing.\nL2: \nL3:   * one\nL4:   * two"
    )
    source = open_(browser, cursor=0, view_source=True)
    assert "<title>A &amp; page</title>" in source
    assert open_(browser, id=0) == "Invalid link id `0`."
    assert "<script>" in open_(browser, id="docs/page.html", view_source=True)


def test_a_long_line_is_wrapped_and_found_across_the_cut(root, browser):
    (root / "long.txt").write_text("word " * 15 + "split phrase" + " word" * 15 + "\n" + "x" * 200)
    view = lines_of(open_(browser, id="long.txt"))
    assert max(len(line.partition(": ")[2]) for line in view) <= 80
    assert "".join(line.partition(": ")[2] for line in view[2:]) == (root / "long.txt").read_text().replace("\n", "")
    assert "match at L2" in find(browser, "split phrase")
    assert "match at L3" in find(browser, "phrase", cursor=0)


def test_a_view_is_bounded_whatever_was_asked_for(root, browser):
    (root / "long.txt").write_text("".join(f"line {i} {'é' * 60}\n" for i in range(1000)))
    for arguments in ({"id": "long.txt"}, {"loc": 500}, {"num_lines": 900}):
        view = open_(browser, **arguments)
        assert VIEW_BYTES * 0.9 < len(view.encode()) < VIEW_BYTES + 200
    first = open_(browser, loc=0)
    last = int(first.split("\n")[1].partition(" - ")[2].partition("]")[0])
    assert lines_of(first)[-1].startswith(f"L{last}: ")
    assert open_(browser, loc=last + 1).split("\n")[1].startswith(f"**viewing lines [{last + 1} - ")
    (root / "control.txt").write_text("\x01" * 100_000)
    assert len(open_(browser, id="control.txt")) < VIEW_BYTES + 200
    many = find(browser, "line", cursor=0)
    assert len(many.encode()) < VIEW_BYTES + 200
    assert "match at L998" not in many


def test_cursors_keep_what_was_shown(root, browser):
    open_(browser, id="notes one.md")
    (root / "notes one.md").write_text("changed")
    assert "Nothing here." in open_(browser, cursor=0)
    assert "changed" in open_(browser, id="notes one.md")
    (root / "notes one.md").unlink()
    assert "Nothing here." in open_(browser, cursor=0)
    find(browser, "nothing", cursor=0)
    assert open_(browser, id=0).startswith("There is no file `notes one.md`")
    browser.close()
    assert open_(browser) == "No pages to access!"


# Search.


def test_ranking(root, browser):
    (root / "rare.txt").write_text("zebra " + "filler " * 50)
    (root / "often.txt").write_text("zebra zebra zebra " + "filler " * 50)
    (root / "long.txt").write_text("zebra " + "filler " * 5000)
    (root / "zebra.txt").write_text("nothing but a name")
    (root / "both.txt").write_text("zebra crossing " + "filler " * 50)
    assert found(search(browser, "zebra"))[:3] == ["zebra.txt", "often.txt", "rare.txt"]
    assert found(search(browser, "zebra"))[-1] == "long.txt"
    assert found(search(browser, "the ZEBRA-crossings? crossing"))[0] == "both.txt"
    assert len(found(search(browser, "zebra", topn=2))) == 2
    assert len(found(search(browser, "zebra", topn=-7))) == 1


def test_a_word_is_found_where_a_word_begins(root, browser):
    (root / "a.txt").write_text("converts parse_sizes ÜBER")
    for word in ("convert", "size", "parse_size", "über", "Converts"):
        assert "a.txt" in found(search(browser, word)), word
    for word in ("verts", "arse", "ber", "conversion"):
        assert "a.txt" not in found(search(browser, word)), word
    assert "No search results for: `verts`" in search(browser, "verts")


def test_a_result_leads_to_its_best_passage(root, browser):
    (root / "long.txt").write_text("alpha\n" * 50 + "alpha omega\n" + "alpha\n" * 50)
    view = search(browser, "alpha omega")
    assert view.endswith("【0†long.txt】 alpha omega alpha alpha")
    assert open_(browser, id=0).startswith("[1] long.txt (long.txt)\n**viewing lines [48 - 102] of 102**")
    assert open_(browser, id=0, cursor=0, loc=0, num_lines=1).endswith("\nL0: ")


def test_what_is_not_searched(root, browser):
    (root / ".hidden.txt").write_text("needle")
    (root / ".git").mkdir()
    (root / ".git" / "config").write_text("needle")
    (root / "binary.bin").write_bytes(b"needle\0")
    (root / "large.txt").write_bytes(b"needle " * (MAX_BYTES // 7 + 1))
    (root / "latin.txt").write_bytes("needle ä".encode("latin-1"))
    (root / "empty.txt").touch()
    (root / "link.txt").symlink_to(root / "latin.txt")
    (root / "loop").symlink_to(root)
    os.mkfifo(root / "fifo")
    assert found(search(browser, "needle")) == ["latin.txt"]
    assert "needle \ufffd" in open_(browser, id=0)
    for name, complaint in {
        ".hidden.txt": "There is no file `.hidden.txt`",
        ".git/config": "There is no file",
        "binary.bin": "Cannot read `binary.bin`: it is not text.",
        "large.txt": "Cannot read `large.txt`: more than 4,194,304 bytes.",
        "empty.txt": "Cannot read `empty.txt`: it is empty",
        "fifo": "Cannot read `fifo`: not a regular file.",
        "docs": "Cannot read `docs`: not a regular file.",
    }.items():
        assert open_(browser, id=name).startswith(complaint)
    assert "needle" in open_(browser, id="loop/link.txt")


@pytest.mark.skipif(os.getuid() == 0, reason="root reads everything")
def test_what_cannot_be_read_is_left_out(root, browser):
    (root / "closed.txt").write_text("needle")
    (root / "closed.txt").chmod(0)
    (root / "docs").chmod(0)
    assert found(search(browser, "needle page")) == []
    assert "Permission denied" in open_(browser, id="closed.txt")
    (root / "docs").chmod(0o755)


def test_an_empty_folder(tmp_path):
    assert "No search results" in search(Browser(tmp_path), "anything")


def test_folders_nested_deeper_than_calls_may_be(tmp_path):
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(300):
        os.mkdir("d", dir_fd=here)
        here, above = os.open("d", os.O_RDONLY, dir_fd=here), here
        os.close(above)
    os.close(here)
    (tmp_path / "a.txt").write_text("needle")
    limit = sys.getrecursionlimit()
    try:
        sys.setrecursionlimit(len(inspect.stack(0)) + 150)
        assert found(search(Browser(tmp_path), "needle")) == ["a.txt"]
    finally:
        sys.setrecursionlimit(limit)
        subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)  # what removes temporary folders calls itself


# Calls.


@pytest.mark.parametrize(
    ("function", "text", "complaint"),
    [
        ("search", "", "`query` should be a string"),
        ("search", "{", "Invalid function arguments: "),
        ("search", "[]", "not a JSON object"),
        ("search", '{"query": "\\ud800"}', "Invalid function arguments: "),
        ("search", '{"query": "\ud800"}', "Invalid function arguments: "),
        ("search", '{"query": 3}', "`query` should be a string"),
        ("search", '{"query": "?!"}', "`query` has no words"),
        ("search", '{"query": "a", "topn": "3"}', "`topn` should be an integer"),
        ("open", '{"id": true}', "`id` should be an integer"),
        ("open", '{"id": 0.5}', "`id` should be an integer"),
        ("open", '{"id": [1]}', "`id` should be an integer"),
        ("open", '{"loc": "3"}', "`loc` should be an integer"),
        ("open", '{"cursor": 9}', "Cursor `9` is out of range. Available cursor indices: [0 - 0]."),
        ("open", '{"cursor": -2}', "Cursor `-2` is out of range."),
        ("open", '{"id": 5}', "Invalid link id `5`."),
        ("open", '{"loc": 99}', "Invalid location parameter: `99`. Cannot exceed page maximum of 7."),
        ("find", "{}", "`pattern` should be a string"),
        ("find", '{"pattern": ""}', "`pattern` should be a string"),
        ("click", "{}", "Unknown function: click"),
        ("", "{}", "Unknown function: "),
    ],
)
def test_calls_that_are_wrong(browser, function, text, complaint):
    open_(browser, id="notes one.md")
    assert complaint in browser.run(function, text)
    assert open_(browser, loc=None, id=-1.0, unknown=3).startswith("[1] notes one.md")


def test_results_cannot_be_searched_and_failures_take_no_cursor(browser):
    assert open_(browser) == "No pages to access!"
    search(browser, "timeout")
    for _ in range(2):
        assert find(browser, "timeout") == "Cannot run `find` on search results page or find results page"
    open_(browser, id=0, loc=999)
    assert find(browser, "nix", cursor=0).startswith("Cannot")
    assert open_(browser, id="notes one.md").startswith("[1] ")
    assert find(browser, "nix").endswith("\nL0: No `find` results for pattern: `nix`")
    assert open_(browser, loc=0).startswith("[3] Find results")


@pytest.mark.parametrize("name", ["none", "file", "\x1b[2J"])
def test_a_root_that_is_no_folder(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(GptOssError, match="cannot browse") as caught:
        Browser(tmp_path / name)
    assert str(caught.value).isprintable()
