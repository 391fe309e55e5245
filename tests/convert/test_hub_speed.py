"""What a large download takes: time, where the server limits each connection or the whole line; and memory."""

import time
import tracemalloc
from contextlib import contextmanager

import numpy as np
import pytest

from gptoss_convert.hub import Repository
from gptoss_convert.ranges import CONNECTIONS
from gptoss_mlx.files import BUFFER
from gptoss_mlx.progress import Rate

from .hub import serving_apart, use

pytestmark = pytest.mark.timeout(300)

REPOSITORY, FILE = "somebody/large", "model.safetensors"


@pytest.fixture
def large(tmp_path):
    """Writes a file of so many bytes, in a repository; returns the repository's folder."""

    def write(size):
        folder = tmp_path / "repository"
        folder.mkdir()
        (folder / FILE).write_bytes(np.random.RandomState(0).bytes(size))
        return folder

    return write


@contextmanager
def opened(folder, monkeypatch, **limits):
    with serving_apart(folder, REPOSITORY, **limits) as hub:
        use(hub, monkeypatch, folder.parent / "cache")
        yield Repository.open(REPOSITORY)


def seconds_of_one_stream(repository, path):
    """One request for all of the file, written as it comes."""
    resource = repository._resource(repository.files[FILE])
    started = time.monotonic()
    with path.open("wb") as file:
        reached, problem = resource.receive(0, resource.size, lambda position, data: file.write(data))
    assert (reached, problem) == (resource.size, None)
    return time.monotonic() - started


def seconds_of_all_connections(repository, folder, on_read=lambda count: None):
    folder.mkdir()
    started = time.monotonic()
    repository.fetch(FILE, folder, on_read)
    return time.monotonic() - started


@pytest.mark.timing
def test_six_times_a_single_stream(large, tmp_path, monkeypatch):
    """20 MB/s a connection."""
    with opened(large(320_000_000), monkeypatch, rate=20e6) as repository:
        one = seconds_of_one_stream(repository, tmp_path / "one")
        several = seconds_of_all_connections(repository, tmp_path / "several")
    print(f"one stream {one:.2f} s, all connections {several:.2f} s: {one / several:.2f} times")
    assert one / several >= 6


@pytest.mark.timing
def test_as_fast_as_a_single_stream_where_the_line_is_the_limit(large, tmp_path, monkeypatch):
    with opened(large(160_000_000), monkeypatch, line=40e6) as repository:
        one = seconds_of_one_stream(repository, tmp_path / "one")
        several = seconds_of_all_connections(repository, tmp_path / "several")
    print(f"one stream {one:.2f} s, all connections {several:.2f} s: {one / several:.2f} times")
    assert several <= 1.03 * one


@pytest.mark.timing
def test_the_time_left_is_right_after_ten_seconds(large, tmp_path, monkeypatch):
    """3 MB/s a connection."""
    rate, done, said = Rate(), 0, []

    def on_read(count):
        nonlocal done
        done, now = done + count, time.monotonic()
        rate.report(now, done)
        if now - started >= 10 and not said:
            said.append((now, rate.seconds_left(now, size)))

    size = 600_000_000
    with opened(large(size), monkeypatch, rate=3e6) as repository:
        started = time.monotonic()
        seconds_of_all_connections(repository, tmp_path / "several", on_read)
        ended = time.monotonic()
    ((at, left),) = said
    print(f"after 10 s: {left:.1f} s left; it took {ended - at:.1f} s")
    assert abs(left - (ended - at)) <= 0.2 * (ended - at)


@pytest.mark.slow
def test_memory(large, tmp_path, monkeypatch):
    """Of what is read in order to be hashed, and of what each connection has just received."""
    with opened(large(128_000_000), monkeypatch) as repository:
        tracemalloc.start()
        seconds_of_all_connections(repository, tmp_path / "several")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < BUFFER + CONNECTIONS * 2**20
