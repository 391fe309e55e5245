"""Parameters of tests, some of which only `make test-all` has: they look at what others look at too."""

from collections.abc import Collection, Iterable

import pytest


def with_slow(names: Iterable[str], slow: Collection[str]) -> list:
    """All of `names`, those in `slow` marked so."""
    names = list(names)
    assert not set(slow) - set(names)
    return [pytest.param(name, marks=pytest.mark.slow) if name in slow else name for name in names]
