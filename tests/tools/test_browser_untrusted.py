"""The browser over files that somebody else has written: what stays outside, what cannot drive a terminal or the model,
and what large files cost."""

import json
import os
import signal
import time
import tracemalloc
from pathlib import Path

import pytest

from gptoss_mlx import untrusted
from gptoss_mlx.tools import browser as browser_module
from gptoss_mlx.tools import search as search_module
from gptoss_mlx.tools.browser import Browser
from gptoss_mlx.tools.pages import Page
from tools.browsing import find, lines_of, open_, search


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
    opened = untrusted.descriptor_beneath

    def replace_and_open(folder, names):
        if "/".join(names) == name and not (root / name).is_symlink():
            put_in_place(root / name, what, target)
        return opened(folder, names)

    for module in (browser_module, search_module, untrusted):
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
    monkeypatch.setattr(search_module, "MAX_HITS", 20)
    assert search(Browser(root), "needle hay", topn=5) == everything


# Time.


@pytest.mark.parametrize("size", [10_000, pytest.param(40_000, marks=pytest.mark.slow)])
def test_hostile_files_take_no_time(root, browser, size):
    texts = {
        "line.txt": "a" * 25 * size,
        "dashes.txt": "- " * 8 * size,
        "links.html": "".join(f"<a href='page{i}.html'>x</a>" for i in range(size // 20)),
        "unclosed.html": "<a href='docs/page.html'>x" * (size // 20),
        "number.html": f"&#{'9' * 10_000}; x &#9999999999; &#xd800; &#0;",
    }
    texts |= {
        f"{i}.html": markup * size for i, markup in enumerate(("<p>", "<!--", "<a", "<a b='", "<?x", "</a ", "&"))
    }
    for name, text in texts.items():
        (root / name).write_text(text)
    started = time.process_time()
    for name in texts:
        assert "viewing lines" in open_(browser, id=name)
    find(browser, "a" * 100, cursor=0)
    search(browser, "a x")
    search(browser, " ".join(f"{'w' * 1000}{i}" for i in range(5000)))
    assert time.process_time() - started < size / 2000


def test_interrupted_it_goes_on(root, browser, monkeypatch):
    for i in range(20):
        (root / f"{i}.txt").write_text("needle " * 1000)
    opened, open_beneath = [], search_module.open_beneath

    def interrupted(folder, names):
        opened.append(names)
        if len(opened) == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return open_beneath(folder, names)

    monkeypatch.setattr(search_module, "open_beneath", interrupted)
    with pytest.raises(KeyboardInterrupt):
        search(browser, "needle")
    assert "needle" in search(browser, "needle", topn=1)
