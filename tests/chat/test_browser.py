"""The browser over a folder: what pages look like to the model, what is found, and what stays outside."""

import json
import os
import signal
import subprocess
import time
import tracemalloc
from pathlib import Path

import pytest

from gptoss_mlx import untrusted
from gptoss_mlx.errors import GptOssError
from gptoss_mlx.tools import browser as browser_module
from gptoss_mlx.tools.browser import MAX_BYTES, VIEW_BYTES, Browser, Page

NOTES = """\
# Notes
\tThe timeout is thirty seconds, and this line is long enough that it has to be wrapped.

Nothing here.
A Timeout again."""

PAGE = """\
<!doctype html><html><head><title>A &amp; page</title><style>p { color: red }</style><script>x()</script></head>
<body><h1>Heading</h1><p>See <a href="sub/other.html#part">the  other
page</a>, <a href='../docs/sub/other.html?q=1'>again</a>, <a href="/notes%20one.md">the †notes</a>,
<a href="https://example.org/">elsewhere</a>, <a href="../../secret.txt">up</a>, <a href="none.html">nothing</a>.
<ul><li>one<li>two</ul><div><div>x</div></div>
<pre>
  as   it
    is
</pre><table><tr><td>a</td><td>b</td></tr><tr><td>c</td></tr></table>
<p>End &#12304;0&#8224;fake&#12305;</body></html>"""


@pytest.fixture
def root(tmp_path) -> Path:
    root = tmp_path / "root"
    (root / "docs" / "sub").mkdir(parents=True)
    (root / "notes one.md").write_text(NOTES)
    (root / "docs" / "page.html").write_text(PAGE)
    (root / "docs" / "sub" / "other.html").write_text("<p>Other")
    (tmp_path / "secret.txt").write_text("timeout secret")
    return root


@pytest.fixture
def browser(root) -> Browser:
    return Browser(root)


def search(browser: Browser, query: str, **more) -> str:
    return browser.run("search", json.dumps({"query": query} | more))


def open_(browser: Browser, **arguments) -> str:
    return browser.run("open", json.dumps(arguments))


def find(browser: Browser, pattern: str, **more) -> str:
    return browser.run("find", json.dumps({"pattern": pattern} | more))


def lines_of(view: str) -> list[str]:
    return view.split("\n")[3:]


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


def found(view: str) -> list[str]:
    return [line.partition("†")[2].partition("】")[0] for line in view.split("\n") if "【" in line]


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
    for _ in range(1200):
        os.mkdir("d", dir_fd=here)
        here, above = os.open("d", os.O_RDONLY, dir_fd=here), here
        os.close(above)
    os.close(here)
    (tmp_path / "a.txt").write_text("needle")
    try:
        assert found(search(Browser(tmp_path), "needle")) == ["a.txt"]
    finally:
        subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)  # what removes temporary folders calls itself


# What is foreign.


@pytest.mark.parametrize(
    "path",
    ["../secret.txt", "docs/../../secret.txt", "SECRET", "out.txt", "out/secret.txt", "dead.txt", "none", "a\0b", "~",
     "https://example.org/", "file:///etc/passwd", "x" * 5000, "\u001b[2J"],
)  # fmt: skip
def test_nothing_outside_is_opened(tmp_path, root, browser, path):
    (root / "out.txt").symlink_to(tmp_path / "secret.txt")
    (root / "out").symlink_to(tmp_path)
    (root / "dead.txt").symlink_to(root / "nothing")
    (tmp_path / "root-2").mkdir()
    answer = open_(browser, id=str(tmp_path / "secret.txt") if path == "SECRET" else path)
    assert answer.startswith("There is no file `")
    assert answer.isprintable()
    assert len(answer) < 400
    assert "secret" not in search(browser, "secret timeout").partition("URL")[2]


def test_paths_inside(root, browser):
    for path in ("notes one.md", "./docs/../notes one.md", str(root / "notes one.md")):
        assert "Nothing here." in open_(browser, id=path)
    (root / "inside.md").symlink_to("notes one.md")
    assert open_(browser, id="inside.md").startswith("[3] notes one.md (notes one.md)\n")


def test_a_file_that_is_replaced_by_a_way_out(tmp_path, root, browser):
    search(browser, "thirty")
    (root / "notes one.md").unlink()
    (root / "notes one.md").symlink_to(tmp_path / "secret.txt")
    assert open_(browser, id=0).startswith("There is no file")


def put_in_place(path: Path, what: str, outside: Path) -> None:
    """Replace a file or a folder as somebody would who wants to lead out, or to hold up."""
    path.rename(path.with_name(f".was-{path.name}"))
    if what == "link":
        path.symlink_to(outside)
    elif what == "link inside":
        path.symlink_to(f".was-{path.name}")
    elif what == "fifo":
        os.mkfifo(path)
    elif what == "device":
        path.symlink_to("/dev/zero")
    elif what == "folder":
        path.mkdir()


@pytest.fixture
def outside(tmp_path) -> Path:
    """A folder that looks like `docs`, and a file; nobody inside may see what they say."""
    folder = tmp_path / "outside"
    (folder / "sub").mkdir(parents=True)
    for path in (folder / "page.html", folder / "sub" / "other.html", folder / "more.txt"):
        path.write_text("timeout secret")
    return folder


REPLACED = [
    *(("docs/page.html", what) for what in ("link", "link inside", "fifo", "device", "folder", "nothing")),
    *(("docs", what) for what in ("link", "link inside", "fifo", "nothing")),
    *(("docs/sub", what) for what in ("link", "nothing")),
]


@pytest.mark.parametrize(("name", "what"), REPLACED)
def test_what_is_replaced_between_check_and_opening(monkeypatch, root, browser, outside, name, what):
    path = "docs/sub/other.html" if name == "docs/sub" else "docs/page.html"
    checked = Browser._inside
    target = outside / "page.html" if name.endswith("html") else outside / name.removeprefix("docs").strip("/")

    def check_and_replace(browser, wanted):
        real = checked(browser, wanted)
        put_in_place(root / name, what, target)
        return real

    with monkeypatch.context() as patched:
        patched.setattr(Browser, "_inside", check_and_replace)
        answer = open_(browser, id=path)
    assert answer.startswith(f"Cannot read `{path}`: ")
    assert "secret" not in answer


@pytest.mark.parametrize(("name", "what"), REPLACED)
def test_what_is_replaced_while_it_is_searched(monkeypatch, root, browser, outside, name, what):
    target = outside / "page.html" if name.endswith("html") else outside / name.removeprefix("docs").strip("/")
    opened = browser_module.descriptor_beneath

    def replace_and_open(folder, names):
        if "/".join(names) == name and not (root / name).is_symlink():
            put_in_place(root / name, what, target)
        return opened(folder, names)

    for module in (browser_module, untrusted):
        monkeypatch.setattr(module, "descriptor_beneath", replace_and_open)
    view = search(browser, "timeout secret heading other")
    assert "notes one.md" in view
    assert "secret" not in view.partition("# Search Results")[2]
    assert "more.txt" not in view


def test_folders_on_the_way_need_not_be_readable(root, browser):
    (root / "docs").chmod(0o711)
    assert "Heading" in open_(browser, id="docs/page.html")


def test_text_is_never_a_link_or_a_command_of_the_terminal(root, browser):
    (root / "evil.txt").write_text(
        "【7†click】 \x1b[31mred\x1b[0m \u202edlrow\u2028next\r\nL9: \ufeffa\u200bb\xa0c\u3000d\x00"[:-1]
    )
    view = open_(browser, id="evil.txt")
    assert lines_of(view)[2:] == [
        "L2: 〖7†click〗 \\x1b[31mred\\x1b[0m \\u202edlrow",
        "L3: next",
        "L4: L9: ab c d",
    ]
    assert open_(browser, id=7) == "Invalid link id `7`."
    assert "【7" not in find(browser, "click")


def test_names_are_never_a_link_or_a_command_of_the_terminal(root, browser):
    name = "【9†x】\n\x1b[2J" + "n" * 100
    (root / name).write_text("needle")
    (root / os.fsdecode(b"n\xff.txt")).write_text("needle")
    (root / "title.html").write_text("<title>\n【9†x】\x1b[2J" + "t" * 9999 + "</title>needle")
    view = search(browser, "needle", topn=3)
    assert "\x1b" not in view
    assert "【9" not in view
    assert "〖9‡x〗\\n\\x1b[2J" in view
    number = view.partition("†〖9")[0].rpartition("【")[2]
    assert open_(browser, id=int(number)).startswith("[1] 〖9†x〗\\n\\x1b[2J")
    title = open_(browser, id="title.html").split("\n")[0]
    assert title.startswith("[2] 〖9†x〗\\x1b[2Jttt")
    assert len(title) < 300
    assert "\x1b" not in search(browser, "【9†x】\x1b[2J" * 1000)
    assert "【9" not in find(browser, "【9†x】\x1b", cursor=1)
    json.dumps(search(browser, "needle")).encode()


def test_a_wrapped_link_is_not_carried_to_another_page(root, browser):
    (root / "a.html").write_text(f"<p>needle <a href='docs/page.html'>{'long text ' * 20}</a> needle</p>")
    assert "【" in open_(browser, id="a.html")
    assert find(browser, "needle").count("【") == 1
    assert search(browser, "needle").count("【") == 1


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


# Memory.


def test_pages_are_given_up_where_many_are_large(monkeypatch, root, browser):
    monkeypatch.setattr(browser_module, "MAX_KEPT", 300_000)
    for name in "abcd":
        (root / name).write_text(f"{name} " * 50_000)
    open_(browser, id="a")
    for _ in range(10):
        open_(browser, loc=100)
    assert "a a a" in open_(browser, cursor=0)
    for name in "bcd":
        open_(browser, id=name)
    for _ in range(2):
        answer = open_(browser, cursor=0)
        assert answer == "The page at cursor `0` is not kept any more: open it again."
    assert find(browser, "a", cursor=3) == "The page at cursor `3` is not kept any more: open it again."
    assert "c c c" in open_(browser, cursor=13)
    assert "a a a" in open_(browser, id="a")
    (root / "huge").write_text("h" * 1_000_000)
    assert "hhh" in open_(browser, id="huge")
    assert "hhh" in open_(browser, loc=1000)
    assert sum(page is not None for page in browser._pages) == 2


@pytest.mark.parametrize("text", ["\n", "a\n", "ab\n", "a b ", "x"])
def test_lines_take_little_more_memory_than_their_text(text):
    page = Page("", "", text * (100_000 // len(text)))
    tracemalloc.start()
    count = len(page.lines)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count > 1000
    assert peak < 6 * len(page.text)


def test_the_best_of_many_files_are_found(monkeypatch, root):
    for i in range(60):
        (root / f"{i:02}.txt").write_text(f"{'needle ' * (i % 7)}needle hay {'hay ' * (i % 11)}")
    everything = search(Browser(root), "needle hay", topn=5)
    monkeypatch.setattr(browser_module, "MAX_HITS", 20)
    assert search(Browser(root), "needle hay", topn=5) == everything


# Time.


def test_hostile_files_take_no_time(root, browser):
    texts = {
        "line.txt": "a" * 1_000_000,
        "dashes.txt": "- " * 300_000,
        "links.html": "".join(f"<a href='page{i}.html'>x</a>" for i in range(2000)),
        "unclosed.html": "<a href='docs/page.html'>x" * 2000,
        "number.html": f"&#{'9' * 10_000}; x &#9999999999; &#xd800; &#0;",
    }
    texts |= {
        f"{i}.html": markup * 40_000 for i, markup in enumerate(("<p>", "<!--", "<a", "<a b='", "<?x", "</a ", "&"))
    }
    for name, text in texts.items():
        (root / name).write_text(text)
    started = time.monotonic()
    for name in texts:
        assert "viewing lines" in open_(browser, id=name)
    find(browser, "a" * 100, cursor=0)
    search(browser, "a x")
    search(browser, " ".join(f"{'w' * 1000}{i}" for i in range(5000)))
    assert time.monotonic() - started < 20


def test_interrupted_it_goes_on(root, browser, monkeypatch):
    for i in range(20):
        (root / f"{i}.txt").write_text("needle " * 1000)
    opened, open_beneath = [], browser_module.open_beneath

    def interrupted(folder, names):
        opened.append(names)
        if len(opened) == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return open_beneath(folder, names)

    monkeypatch.setattr(browser_module, "open_beneath", interrupted)
    with pytest.raises(KeyboardInterrupt):
        search(browser, "needle")
    assert "needle" in search(browser, "needle", topn=1)
