"""Tools that the tests of a file share: `python` in its sandbox, and both with and without."""

import pytest

from tools.sandboxes import tool_of


@pytest.fixture(scope="module")
def sandbox():
    with tool_of() as tool:
        yield tool


@pytest.fixture(scope="module", params=["sandbox", "unsafe"])
def tool(request):
    with tool_of(unsafe=request.param == "unsafe") as tool:
        yield tool
