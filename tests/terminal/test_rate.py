"""The speed and the time left that progress shows: of the last seconds, whatever was before."""

import pytest

from gptoss_mlx.progress import WINDOW, Rate


def reported(*spans, start=0, each=0.1):
    """A rate after `spans` of (seconds, amount a second), reported at every `each` seconds; and the time."""
    rate, now, done = Rate(), 100.0, float(start)
    rate.report(now, start)
    for seconds, speed in spans:
        for _ in range(round(seconds / each)):
            now, done = now + each, done + speed * each
            rate.report(now, round(done))
    return rate, now


@pytest.mark.parametrize("each", [0.001, 0.1, 3.0])
@pytest.mark.parametrize("start", [0, 10**9])
def test_a_steady_speed(start, each):
    """What was there before counts for nothing."""
    rate, now = reported((30, 1_000_000), start=start, each=each)
    assert rate.per_second(now) == pytest.approx(1_000_000, rel=0.01)
    assert rate.seconds_left(now, start + 40_000_000) == pytest.approx(10, rel=0.01)


def test_a_change_of_speed():
    """Half of it shows after half of the window, and all after all of it."""
    before, after = 10_000, 30_000
    for share in (0.5, 1.0):
        rate, now = reported((60, before), (share * WINDOW, after))
        assert rate.per_second(now) == pytest.approx(before + share * (after - before), rel=0.02)


@pytest.mark.parametrize("spans", [[(30, 1000)], [(30, 1000), (0.5 * WINDOW, 0)]], ids=["silent", "reported"])
def test_a_stall(spans):
    rate, now = reported(*spans)
    known = rate.per_second(now)
    assert rate.per_second(now + 10) < known
    assert rate.seconds_left(now + 10, 10**6) > rate.seconds_left(now, 10**6)
    assert rate.per_second() == pytest.approx(known)  # of work that has ended


def test_after_a_long_stall_nothing_is_known():
    rate, now = reported((30, 1000), (2 * WINDOW, 0))
    assert rate.per_second(now) is None
    assert rate.seconds_left(now, 10**6) is None


def test_large_steps():
    """Longer ones than the window."""
    rate, now = reported((300, 1000), each=1.5 * WINDOW)
    assert rate.per_second(now) == pytest.approx(1000)


def test_the_beginning():
    rate, now = reported(start=5)
    assert rate.per_second(now + 1) is None
    rate.report(now + 2, 25)
    assert rate.per_second(now + 2) == 10


def test_the_end():
    rate, now = reported(start=5)
    assert rate.seconds_left(now, 5) == 0
