"""How long a download takes, from a server in a process of its own that limits each connection, or the whole line."""

import subprocess
import sys
import time
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

from gptoss_convert.hub import Repository
from gptoss_mlx.progress import Rate

from . import hub as stand_in
from .hub import use

pytestmark = [pytest.mark.timing, pytest.mark.timeout(300)]

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
def opened(folder, monkeypatch, *, rate=0.0, line=0.0):
    words = [sys.executable, stand_in.__file__, str(folder), REPOSITORY, str(rate), str(line)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            use(SimpleNamespace(address=process.stdout.readline().strip()), monkeypatch, folder.parent / "cache")
            yield Repository.open(REPOSITORY)
        finally:
            process.kill()


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


def test_six_times_a_single_stream(large, tmp_path, monkeypatch):
    """20 MB/s a connection."""
    with opened(large(320_000_000), monkeypatch, rate=20e6) as repository:
        one = seconds_of_one_stream(repository, tmp_path / "one")
        several = seconds_of_all_connections(repository, tmp_path / "several")
    print(f"one stream {one:.2f} s, all connections {several:.2f} s: {one / several:.2f} times")
    assert one / several >= 6


def test_as_fast_as_a_single_stream_where_the_line_is_the_limit(large, tmp_path, monkeypatch):
    with opened(large(160_000_000), monkeypatch, line=40e6) as repository:
        one = seconds_of_one_stream(repository, tmp_path / "one")
        several = seconds_of_all_connections(repository, tmp_path / "several")
    print(f"one stream {one:.2f} s, all connections {several:.2f} s: {one / several:.2f} times")
    assert several <= 1.03 * one


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
