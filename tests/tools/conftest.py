"""Tools that tests share: `python` in its sandbox, `python` both with and without one, and a browser of a folder."""

from pathlib import Path

import pytest

from gptoss_mlx.tools.browser import Browser
from tools.browsing import NOTES, PAGE
from tools.sandboxes import tool_of


@pytest.fixture(scope="module")
def sandbox():
    with tool_of() as tool:
        yield tool


@pytest.fixture(scope="module", params=["sandbox", "unsafe"])
def tool(request):
    with tool_of(unsafe=request.param == "unsafe") as tool:
        yield tool


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
