"""The page in a real Chromium: the main paths on a laptop and a phone, a hostile answer, a lost connection.

`GPTOSS_MLX_SCREENSHOTS=docs` writes the pictures of docs/page.md; `GPTOSS_MLX_AXE`, the file axe.min.js, checks
accessibility.
"""

import os
import re
import shutil
from pathlib import Path

import pytest

from chat.conversing import Scripted
from gptoss_mlx.chat import answer as chat_answer
from gptoss_mlx.chat.store import Store

from .paging import CALL, FINAL, THOUGHT, Cable, PageServer

playwright = pytest.importorskip("playwright.sync_api")
expect = playwright.expect

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
AXE = os.environ.get("GPTOSS_MLX_AXE")
SCREENSHOTS = os.environ.get("GPTOSS_MLX_SCREENSHOTS")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here"),
]
LAPTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
RICH = """\
The roots of $ax^2 + bx + c = 0$ are

\\[
x = \\frac{-b \\pm \\sqrt{b^2 - 4ac}}{2a}
\\]

In Python:

```python
from math import sqrt

def roots(a, b, c):
    \"\"\"Both of them.\"\"\"
    d = sqrt(b * b - 4 * a * c)
    return (-b - d) / (2 * a), (-b + d) / (2 * a)
```

| a | b | c | roots |
|--:|--:|--:|---|
| 1 | -3 | 2 | **1** and **2** |
"""
HOSTILE = """\
<script>window.pwned = 1</script><img src=x onerror="window.pwned = 1">

![pixel](https://evil.example/pixel.png) [click](javascript:window.pwned=1) [good](https://good.example)

<iframe src="https://evil.example"></iframe> \u202egnirts \u05e9\u05dc\u05d5\u05dd

$\\text{<img src=x onerror=window.pwned=1>}$
"""


@pytest.fixture(scope="module")
def server(demo_folder, tmp_path_factory):
    with PageServer(demo_folder, Store(tmp_path_factory.mktemp("browser") / "sessions")).running() as server:
        yield server


@pytest.fixture
def cable(server):
    with Cable(server.port) as cable:
        yield cable


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=[LAPTOP, PHONE], ids=["laptop", "phone"])
def page(request, server, chromium, monkeypatch):
    monkeypatch.setattr(chat_answer, "Sampler", Scripted)
    Scripted.waiting = []
    server.seen.clear()
    for entry in server.store:
        entry.transcript.unlink()
    context = chromium.new_context(viewport=request.param, base_url=server.url, accept_downloads=True)
    page = context.new_page()
    page.problems, page.asked = [], []
    page.on("console", lambda message: page.problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("request", lambda sent: page.asked.append(sent.url))
    page.is_phone = request.param is PHONE
    page.goto("/")
    expect(page.locator("#version")).to_contain_text("demo")
    yield page
    assert all(url.startswith(("http://127.0.0.1:", "blob:")) for url in page.asked)
    context.close()


def ask(page, server, text, *answer):
    server.script(*answer)
    page.get_by_label("Message", exact=True).and_(page.locator("textarea")).fill(text)
    page.keyboard.press("Enter")


def done(page):
    page.locator(".actions.last").wait_for()


def picture(page, name):
    if SCREENSHOTS:
        page.screenshot(path=Path(SCREENSHOTS) / name)


def accessible(page):
    """No violation of axe's rules, and nothing wider than the window."""
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    if AXE:
        page.evaluate(Path(AXE).read_text())
        found = page.evaluate(
            "axe.run().then(results => results.violations.map(v => [v.id, v.nodes.map(n => n.html)]))"
        )
        assert found == []


def test_a_question_and_its_answer(page, server):
    accessible(page)
    ask(page, server, "How are quadratic equations solved?", f"{THOUGHT}{FINAL}{RICH}<|return|>")
    done(page)
    assert page.locator("math").count() == 2
    assert page.locator(".c-kn").first.inner_text() == "from"
    assert re.match(r"Thought for [\d.]+ s, \d+ tokens", page.locator(".reasoning summary").inner_text())
    assert not page.locator(".reasoning .block").is_visible()
    page.locator(".reasoning summary").click()
    assert page.locator(".reasoning .block").inner_text() == "I think."
    page.locator(".reasoning summary").click()
    assert "tokens/s" in page.locator("#facts").inner_text()
    page.locator("#log").evaluate("log => { log.scrollTop = 0 }")
    picture(page, "page-phone.png" if page.is_phone else "page.png")
    accessible(page)
    page.locator(".copy").click()
    page.get_by_text("Copied").first.wait_for()
    page.locator("#theme").click()
    accessible(page)
    page.reload()
    page.locator("math").first.wait_for()
    assert page.locator(".question").inner_text() == "How are quadratic equations solved?"
    assert page.problems == []


def test_edit_regenerate_undo(page, server):
    ask(page, server, "First", f"{FINAL}One.<|return|>")
    done(page)
    ask(page, server, "Second", f"{FINAL}Two.<|return|>")
    done(page)
    server.script(f"{FINAL}Three.<|return|>")
    page.get_by_role("button", name="Regenerate").click()
    page.get_by_text("Three.").first.wait_for()
    done(page)
    assert page.get_by_text("Two.").count() == 0
    page.get_by_role("button", name="Edit").first.click()
    ask(page, server, "Another", f"{FINAL}Four.<|return|>")
    done(page)
    assert page.locator(".question").all_inner_texts() == ["Another"]
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("#text")).to_have_value("Another")
    assert page.locator(".question").count() == 0
    assert page.problems == []


def test_a_hostile_answer_is_text(page, server):
    ask(page, server, "Attack", f"{FINAL}{HOSTILE}<|return|>")
    done(page)
    assert page.evaluate("window.pwned") is None
    answer = page.locator(".answer")
    assert answer.locator("script, img, iframe").count() == 0
    assert "<script>" in answer.inner_text()
    links = answer.locator("a").evaluate_all("links => links.map(a => [a.href, a.rel, a.target])")
    assert [link[0] for link in links] == [
        "https://evil.example/pixel.png",
        "https://good.example/",
        "https://evil.example/",  # an address in a text
    ]
    assert all(link[1:] == ["noopener noreferrer", "_blank"] for link in links)
    accessible(page)
    assert page.problems == []


def test_a_huge_answer_stays_usable(page, server):
    ask(page, server, "Long", f"{FINAL}{'word ' * 300}\n\n{'x' * 3000}\n\n```\n{'y' * 500}\n```\n<|return|>")
    done(page)
    accessible(page)


def test_a_call_is_shown_and_allowed(page, server):
    server.seen.set()
    ask(page, server, "Look", CALL, f"{FINAL}Seen.<|return|>")
    page.get_by_role("button", name="Allow", exact=True).wait_for()
    assert '"x": 1' in page.locator(".call.asking pre").inner_text()
    accessible(page)
    page.get_by_role("button", name="Allow", exact=True).click()
    done(page)
    assert "Seen." in page.locator(".answer").inner_text()
    assert page.problems == []


def test_escape_stops_and_continue_resumes(page, server):
    ask(page, server, "Look", CALL)
    page.get_by_role("button", name="Refuse").wait_for()
    page.keyboard.press("Escape")
    page.get_by_text("Stopped.").first.wait_for()
    done(page)
    server.script(f"{FINAL}Resumed.<|return|>")
    page.get_by_role("button", name="Continue").click()
    page.get_by_text("Resumed.").first.wait_for()
    done(page)


def test_a_reload_finds_the_turn_that_runs(page, server):
    server.seen.set()
    ask(page, server, "Look", CALL)
    page.get_by_role("button", name="Refuse").wait_for()
    page.reload()
    server.script(f"{FINAL}Refused.<|return|>")
    page.get_by_role("button", name="Refuse").click()
    page.get_by_text("Refused.").first.wait_for()
    done(page)
    assert page.locator(".question").count() == 1


def test_a_lost_connection_is_found_again(page, server, cable):
    server.seen.set()
    page.goto(cable.url)
    expect(page.locator("#version")).to_contain_text("demo")
    ask(page, server, "Look", CALL)
    page.get_by_role("button", name="Refuse").wait_for()
    cable.cut()
    page.get_by_text("The connection is lost").wait_for()
    cable.join()
    page.get_by_text("The connection is lost").wait_for(state="detached")
    server.script(f"{FINAL}Found.<|return|>")
    page.get_by_role("button", name="Refuse").click()
    done(page)
    assert page.locator(".answer").all_inner_texts() == ["Found."]
    assert page.locator(".call").count() == 1


def test_files_settings_and_the_list(page, server, tmp_path):
    (tmp_path / "notes.txt").write_text("one\ntwo\n")
    (tmp_path / "picture.bin").write_bytes(b"\x89PNG\0\xff")
    page.locator("#picker").set_input_files([tmp_path / "notes.txt", tmp_path / "picture.bin"])
    page.get_by_text("picture.bin is not text").first.wait_for()
    page.get_by_role("button", name="Settings").click()
    accessible(page)
    page.locator("#reasoning_effort").select_option("low")
    page.get_by_role("button", name="Done").click()
    ask(page, server, "Sum up", f"{FINAL}Two lines.<|return|>")
    done(page)
    (entry,) = server.store
    assert "File notes.txt:" in entry.transcript.read_text()
    assert '"reasoning_effort": "low"' in entry.transcript.read_text()
    if page.is_phone:
        page.get_by_role("button", name="Conversations").click()
    page.get_by_role("button", name="More for sum-up").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Export").click()
    assert "Two lines." in Path(download.value.path()).read_text()
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Delete").click()
    expect(page.locator("#list li")).to_have_count(0)
    assert page.problems == []
