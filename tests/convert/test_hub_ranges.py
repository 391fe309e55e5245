"""A file in several ranges at once, from servers that do what servers do; what comes twice is counted."""

import hashlib
import os
import random
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
from huggingface_hub import constants, hf_hub_download, scan_cache_dir

import zygote
from checkpoints import config_of, write_checkpoint
from gptoss_convert import convert, partial_file, ranges
from gptoss_convert.hub import Repository
from gptoss_convert.partial_file import PartialFile, arrived
from gptoss_convert.ranges import CONNECTIONS
from gptoss_mlx.errors import GptOssError

from .hub import COMMIT, TOKEN, serving, use

REPOSITORY = "somebody/large"
FILE, PLAIN = "model.safetensors", "vocab.bin"
CHUNK, RANGE = 2**16, 2**18
CONTENT = random.Random(0).randbytes(40 * CHUNK + 123)
OTHER = random.Random(1).randbytes(len(CONTENT))


@pytest.fixture
def hub(tmp_path):
    folder = tmp_path / "repository"
    folder.mkdir()
    for name in (FILE, PLAIN):
        (folder / name).write_bytes(CONTENT)
    with serving(folder, REPOSITORY) as hub:
        yield hub


@pytest.fixture
def repository(hub, tmp_path, monkeypatch):
    use(hub, monkeypatch, tmp_path / "cache")
    monkeypatch.setattr(ranges, "PAUSES", (0, 0.05, 0.1))
    monkeypatch.setattr(ranges, "MAX_RANGE", RANGE)
    for module in (ranges, partial_file):
        monkeypatch.setattr(module, "CHUNK", CHUNK)
    return Repository.open(REPOSITORY)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "fetched").mkdir()
    return tmp_path / "fetched"


def assert_fetched(repository, folder, name=FILE):
    """Returns the bytes that were reported."""
    heard = []
    fetched = repository.fetch(name, folder, heard.append)
    assert fetched.path.read_bytes() == CONTENT
    assert fetched.sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert [path.name for path in folder.iterdir()] == [name]
    return sum(heard)


def asked(hub, name=FILE):
    """The ranges that were sent, in order of their start."""
    answered = [request for request in hub.of(name) if request.status == 206]
    return sorted(tuple(map(int, re.findall(r"\d+", request.range))) for request in answered)


def sent(hub, name=FILE):
    return sum(request.sent for request in hub.of(name))


def blobs(tmp_path):
    return tmp_path / "cache" / f"models--{REPOSITORY.replace('/', '--')}" / "blobs"


def interrupt(count):
    raise KeyboardInterrupt


def partial_of(folder):
    (path,) = folder.glob("*.partial")
    return path


def test_all_connections_are_used_and_nothing_comes_twice(hub, repository, folder):
    hub.gate = CONNECTIONS
    assert assert_fetched(repository, folder) == len(CONTENT)
    assert hub.most == CONNECTIONS
    assert sent(hub) == len(CONTENT)
    ends = [-1, *(end for _, end in asked(hub))]
    assert [start for start, _ in asked(hub)] == [end + 1 for end in ends[:-1]]
    assert all(end - start < RANGE for start, end in asked(hub))


def test_the_end_is_divided_too(hub, repository, folder):
    """Ranges get shorter, so that no connection is left alone with a long one."""
    assert_fetched(repository, folder)
    first, *_ = asked(hub)
    *_, last = asked(hub)
    assert last[1] - last[0] < CHUNK <= first[1] - first[0]


def test_the_token_stays_with_the_hub(hub, repository, folder):
    assert_fetched(repository, folder)
    assert {request.authorization for request in hub.of(FILE)} == {None}
    before = [request for request in hub.log if request.what == f"/{REPOSITORY}/resolve/{COMMIT}/{FILE}"]
    assert len(before) == len(hub.of(FILE))
    assert {request.authorization for request in before} == {f"Bearer {TOKEN}"}


class TestServers:
    def test_ranges_are_ignored(self, hub, repository, folder):
        hub.ranges = False
        assert assert_fetched(repository, folder) == len(CONTENT)
        assert len(hub.of(FILE)) <= CONNECTIONS + 1
        assert hub.of(FILE)[-1].sent == len(CONTENT)

    def test_ranges_are_ignored_and_the_connection_breaks(self, hub, repository, folder):
        hub.ranges = False
        hub.cuts[FILE] = [50_000] * CONNECTIONS + [300_000, 700_000]
        assert assert_fetched(repository, folder) == len(CONTENT)

    @pytest.mark.parametrize("cuts", [[1000], [70_000, 0, 10, 200_000] * 3, [0, 0]])
    def test_connections_break(self, hub, repository, folder, cuts):
        hub.cuts[FILE] = cuts
        assert_fetched(repository, folder)
        assert sent(hub) == len(CONTENT)

    def test_connections_hang(self, hub, repository, folder, monkeypatch):
        """For as long as HF_HUB_DOWNLOAD_TIMEOUT allows."""
        monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.5)
        hub.hangs = 3
        assert_fetched(repository, folder)
        hub.let_go()

    def test_too_much(self, hub, repository, folder):
        hub.more = 5000
        assert_fetched(repository, folder)

    def test_too_little(self, hub, repository, folder):
        hub.longest = 50_000
        assert_fetched(repository, folder)
        assert sent(hub) == len(CONTENT)
        assert len(hub.of(FILE)) > len(CONTENT) // 50_000

    def test_ranges_begin_earlier(self, hub, repository, folder):
        hub.aligned = 100_000
        assert_fetched(repository, folder)

    @pytest.mark.parametrize("other", [CONTENT[:-1], CONTENT[:10], CONTENT + b"1"], ids=["less", "little", "more"])
    def test_the_file_gets_another_size(self, hub, repository, folder, other):
        """Some ranges are answered with 416, or tell the new size; what has arrived stays."""
        hub.replaced[FILE] = other
        with pytest.raises(GptOssError, match=f"the hub has other files for {REPOSITORY} than it lists: run the same"):
            repository.fetch(FILE, folder)
        assert partial_of(folder).exists()
        (hub.folder / FILE).write_bytes(CONTENT)
        assert_fetched(repository, folder)

    def test_the_file_gets_other_bytes(self, hub, repository, folder):
        """Its SHA-256 tells."""
        hub.replaced[FILE] = OTHER
        with pytest.raises(GptOssError, match="arrived damaged, and was removed: run the same command again"):
            repository.fetch(FILE, folder)
        assert list(folder.iterdir()) == []
        (hub.folder / FILE).write_bytes(CONTENT)
        assert_fetched(repository, folder)

    def test_a_file_without_a_checksum_gets_other_bytes(self, hub, repository, folder):
        """Its ETag tells."""
        hub.replaced[PLAIN] = OTHER
        with pytest.raises(GptOssError, match="other files"):
            repository.fetch(PLAIN, folder)
        assert list(folder.iterdir()) == []
        (hub.folder / PLAIN).write_bytes(CONTENT)
        assert_fetched(repository, folder, PLAIN)

    @pytest.mark.parametrize(
        ("status", "after", "least"),
        [
            (429, "1", 1),
            (503, "1", 1),
            (503, "soon", 0),
            (429, "Fri, 31 Dec 2100 23:59:59 GMT", 1),
            (429, "Fri, 31 Dec 1999 23:59:59 GMT", 0),
            (429, "Fri, 31 Dec 1999 23:59:59", 0),
        ],
    )
    def test_it_wants_to_be_left_alone(self, hub, repository, folder, monkeypatch, status, after, least):
        monkeypatch.setattr(ranges, "CONNECTIONS", 1)
        monkeypatch.setattr(ranges, "MAX_PAUSE", 1)
        hub.busy = [(status, after)]
        assert_fetched(repository, folder)
        (refused,) = [request for request in hub.log if request.status == status]
        assert min(request.at for request in hub.of(FILE)) - refused.at >= least

    def test_it_takes_few_connections(self, hub, repository, folder, monkeypatch):
        """Those that are refused ask again, longer than they would where nobody gets anything."""
        monkeypatch.setattr(ranges, "PAUSES", (0.2,) * 3)
        hub.limit, hub.slow = 2, 0.06
        assert_fetched(repository, folder)
        assert hub.most == 2
        assert sent(hub) == len(CONTENT)

    @pytest.mark.parametrize("status", [403, 500])
    def test_refusals_end_it(self, hub, repository, folder, status):
        hub.status = status
        with pytest.raises(GptOssError, match="the hub"):
            repository.fetch(FILE, folder)
        assert not (folder / FILE).exists()


class TestResuming:
    CODE = """
import sys
from pathlib import Path
from gptoss_convert import partial_file, ranges
from gptoss_convert.hub import Repository
partial_file.CHUNK = ranges.CHUNK = ranges.MAX_RANGE = int(sys.argv[2])
Repository.open(sys.argv[3]).fetch(sys.argv[4], Path(sys.argv[1]) if sys.argv[1] else None)
"""

    @pytest.mark.parametrize(
        ("number", "into"), [(signal.SIGKILL, "folder"), (signal.SIGINT, "folder"), (signal.SIGKILL, "cache")]
    )
    def test_at_most_a_range_of_each_connection_comes_twice(self, hub, repository, folder, tmp_path, number, into):
        hub.slow = 0.1
        to, where = (folder, folder) if into == "folder" else (None, blobs(tmp_path))
        environment = os.environ | {"HF_ENDPOINT": hub.address, "HF_HUB_CACHE": str(tmp_path / "cache")}
        words = ["-c", self.CODE, str(to or ""), str(CHUNK), REPOSITORY, FILE]
        process = zygote.shared().open(words, environment)
        deadline = time.monotonic() + 30
        while sent(hub) < len(CONTENT) / 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(number)
        process.communicate()
        hub.settle()
        hub.slow = 0
        first, here = sent(hub), arrived(partial_of(where), len(CONTENT))
        assert first - CONNECTIONS * CHUNK <= here <= first < len(CONTENT)
        assert repository.arrived(FILE, to) == here
        heard = []
        assert repository.fetch(FILE, to, heard.append).path.read_bytes() == CONTENT
        assert sum(heard) == sent(hub) - first == len(CONTENT) - here
        assert not list(where.glob(".*"))

    def test_what_an_append_left(self, hub, repository, folder):
        """Without a record, all that is there has arrived: so did an earlier version."""
        with pytest.raises(KeyboardInterrupt):
            repository.fetch(FILE, folder, interrupt)
        path = partial_of(folder)
        path.with_suffix(".chunks").unlink()
        path.write_bytes(CONTENT[:1_000_000])
        hub.log.clear()
        assert assert_fetched(repository, folder) == sent(hub) == len(CONTENT) - 1_000_000

    @pytest.mark.parametrize("record", [b"", b"1234567", b"\xff" * 8 * 41, bytes(8 * 40), bytes(8 * 41)])
    def test_a_record_that_cannot_be(self, hub, repository, folder, record):
        with pytest.raises(KeyboardInterrupt):
            repository.fetch(FILE, folder, interrupt)
        partial_of(folder).write_bytes(OTHER[: len(OTHER) // 2])
        partial_of(folder).with_suffix(".chunks").write_bytes(record)
        assert assert_fetched(repository, folder) == len(CONTENT)

    def test_a_file_without_a_checksum_begins_anew(self, hub, repository, folder):
        """Nothing would tell that the server has other bytes now than those that are here."""
        hub.slow = 0.02
        with pytest.raises(KeyboardInterrupt):
            repository.fetch(PLAIN, folder, lambda count: interrupt(count) if count else None)
        hub.slow = 0
        assert arrived(partial_of(folder), len(CONTENT)) > 0
        assert repository.arrived(PLAIN, folder) == 0
        (hub.folder / PLAIN).write_bytes(OTHER)
        assert repository.fetch(PLAIN, folder).path.read_bytes() == OTHER

    def test_a_record_of_more_than_there_is(self, hub, repository, folder):
        """The power failed, say, after one file was on the disk and before the other."""
        path = folder / "x.partial"
        with PartialFile(path, len(CONTENT)) as partial:
            partial.write(0, CONTENT)
            assert partial.missing() == []
        os.truncate(path, 100_000)
        assert arrived(path, len(CONTENT)) == 100_000
        with PartialFile(path, len(CONTENT)) as partial:
            assert partial.missing() == [(100_000, len(CONTENT))]

    def test_two_processes(self, repository, folder):
        """In one, each open file has a lock of its own."""

        def again(count):
            with pytest.raises(GptOssError, match=f"cannot save .*{FILE}.* another process is downloading it"):
                repository.fetch(FILE, folder)
            interrupt(count)

        with pytest.raises(KeyboardInterrupt):
            repository.fetch(FILE, folder, again)
        assert_fetched(repository, folder)

    def test_a_full_disk_ends_it_at_once(self, repository, folder, monkeypatch):
        def full(self, start, data):
            raise OSError(28, "No space left on device", str(self.path))

        monkeypatch.setattr(PartialFile, "write", full)
        with pytest.raises(GptOssError, match=r"cannot save .*partial of .*: No space left on device"):
            repository.fetch(FILE, folder)


class TestCache:
    """Where huggingface_hub has its files, as it has them."""

    @pytest.mark.parametrize("name", [FILE, PLAIN])
    def test_the_library_finds_a_file(self, repository, tmp_path, name):
        fetched = repository.fetch(name, None)
        assert fetched.path.read_bytes() == CONTENT
        found = hf_hub_download(REPOSITORY, name, revision=COMMIT, local_files_only=True, cache_dir=tmp_path / "cache")
        assert (fetched.path, fetched.ours) == (Path(found), False)
        cache = scan_cache_dir(tmp_path / "cache")
        assert not cache.warnings
        assert cache.size_on_disk == len(CONTENT)

    def test_what_the_library_has_is_not_asked_for_again(self, hub, repository, tmp_path, monkeypatch):
        """Also in another commit's folder."""
        fetched = repository.fetch(FILE, None)
        fetched.path.unlink()
        hub.log.clear()
        assert repository.fetch(FILE, None) == fetched
        assert fetched.path.read_bytes() == CONTENT
        assert not hub.log

    def test_a_disk_without_links(self, hub, repository, monkeypatch):
        def refused(self, *args, **options):
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(Path, "symlink_to", refused)
        fetched = repository.fetch(FILE, None)
        assert fetched.path.read_bytes() == CONTENT
        hub.log.clear()
        assert repository.fetch(FILE, None) == fetched
        assert not hub.log


def test_the_caller_is_asked_while_nothing_comes(hub, repository, folder):
    """So that Ctrl-C ends a download that waits."""
    hub.gate = 10**6
    calls = []

    def stop(count):
        calls.append(count)
        if len(calls) == 5:
            hub.let_go()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        repository.fetch(FILE, folder, stop)
    assert calls == [0] * 5


def test_a_conversion_that_goes_on_counts_what_is_there(hub, repository, tmp_path):
    """From its first report on, so that the speed is that of the network."""
    shutil.rmtree(hub.folder)
    write_checkpoint(hub.folder, config_of(), shards=4)

    def interrupt(step):
        if step.stage == "download" and step.done > step.total / 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(REPOSITORY, tmp_path / "dest", on_progress=interrupt)
    scratch = tmp_path / ".dest.partial"
    here = sum(path.stat().st_size for path in scratch.glob("source-*/model-*.safetensors"))
    for path in scratch.glob("source-*/.model-*.partial"):
        name = path.name[1:].rsplit(".", 2)[0]
        here += arrived(path, (hub.folder / name).stat().st_size)
    steps = []
    convert(REPOSITORY, tmp_path / "dest", on_progress=lambda step: steps.append((step.stage, step.done, step.total)))
    steps = [(done, total) for stage, done, total in steps if stage == "download"]
    assert steps[0][0] == here > 0
    assert steps == sorted(steps)
    done, total = steps[-1]
    assert done == total
