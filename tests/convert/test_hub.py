"""The hub from a local stand-in, with the real huggingface_hub: downloads, their ends and beginnings, and refusals."""

import hashlib
import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants

import zygote
from checkpoints import config_of, tensors_of, write_checkpoint
from gptoss_convert import convert, downloads, pipeline
from gptoss_convert import ranges as hub_ranges
from gptoss_convert.hub import Repository
from gptoss_convert.inspection import Subject, inspect, statistics
from gptoss_mlx.errors import GptOssError
from gptoss_mlx.model.checkpoint import Checkpoint
from gptoss_mlx.model.safetensors import CheckpointError

from .hub import COMMIT, Handler, serving, use

REPOSITORY = "somebody/small-gpt-oss"
CONFIG = config_of()
SHARD = "model-00001-of-00001.safetensors"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = write_checkpoint(tmp_path_factory.mktemp("hub") / "repository", CONFIG)
    (folder / "README.md").write_text("not needed")
    (folder / "LICENSE").write_text("Apache-2.0\n")
    (folder / "original").mkdir()
    (folder / "original" / "model.safetensors").write_bytes(b"the same weights again")
    return folder


@pytest.fixture
def hub(checkpoint):
    with serving(checkpoint, REPOSITORY) as hub:
        yield hub


@pytest.fixture
def here(hub, tmp_path, monkeypatch):
    """This process uses the stand-in, with a cache of its own, and does not wait before it tries again."""
    use(hub, monkeypatch, tmp_path / "cache")
    monkeypatch.setattr(hub_ranges, "PAUSES", (0, 0))
    return hub


@pytest.fixture
def repository(here):
    return Repository.open(REPOSITORY)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "fetched").mkdir()
    return tmp_path / "fetched"


@pytest.fixture
def online(run, hub, tmp_path):
    """The command, with the stand-in as its hub and a cache of its own."""

    def online(*args, **changes):
        return run(*args, **({"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "hf")} | changes))

    return online


def ranges(hub, name):
    return [request.range for request in hub.of(name)]


def test_one_request_tells_what_there_is(here, repository, checkpoint):
    assert [request.what for request in here.log] == [f"/api/models/{REPOSITORY}"]
    assert repository.commit == COMMIT
    assert set(repository.files) == {path.name for path in checkpoint.iterdir() if path.is_file()}
    assert repository.files[SHARD].size == (checkpoint / SHARD).stat().st_size
    assert repository.files[SHARD].sha256 == hashlib.sha256((checkpoint / SHARD).read_bytes()).hexdigest()
    assert repository.files["config.json"].sha256 is None


class TestFetch:
    @pytest.mark.parametrize("name", [SHARD, "tokenizer.json"])
    def test_into_a_folder(self, repository, checkpoint, folder, name):
        heard = []
        fetched = repository.fetch(name, folder, heard.append)
        data = (checkpoint / name).read_bytes()
        assert (fetched.path, fetched.ours) == (folder / name, True)
        assert fetched.path.read_bytes() == data
        assert fetched.sha256 == hashlib.sha256(data).hexdigest()
        assert sum(heard) == len(data)
        assert [path.name for path in folder.iterdir()] == [name]

    def test_into_the_cache_and_from_it(self, here, repository, checkpoint, folder):
        heard = []
        fetched = repository.fetch(SHARD, None, heard.append)
        assert not fetched.ours
        assert fetched.path.read_bytes() == (checkpoint / SHARD).read_bytes()
        assert sum(heard) == fetched.path.stat().st_size
        before = len(here.log)
        assert repository.fetch(SHARD, None) == repository.fetch(SHARD, folder) == fetched
        assert repository.read(SHARD, 8, 20) == fetched.path.read_bytes()[8:20]
        assert len(here.log) == before
        assert list(folder.iterdir()) == []

    def test_a_damaged_file_in_the_cache_is_not_used(self, repository, checkpoint, folder):
        path = repository.fetch(SHARD, None).path
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        assert repository.fetch(SHARD, folder).ours
        assert repository.fetch(SHARD, None).path.read_bytes() == (checkpoint / SHARD).read_bytes()

    def test_a_broken_connection_is_taken_up_where_it_broke(self, here, repository, checkpoint, folder):
        here.cuts[SHARD] = [100_000]
        fetched = repository.fetch(SHARD, folder)
        assert fetched.path.read_bytes() == (checkpoint / SHARD).read_bytes()
        assert ranges(here, SHARD)[1].startswith("bytes=100000-")

    def test_a_transfer_that_stays_broken_goes_on_in_the_next_run(self, here, repository, checkpoint, folder):
        here.cuts[SHARD] = [100_000, 0, 0, 0]
        with pytest.raises(GptOssError, match="run the same command again to resume"):
            repository.fetch(SHARD, folder)
        assert not (folder / SHARD).exists()
        assert repository.fetch(SHARD, folder).path.read_bytes() == (checkpoint / SHARD).read_bytes()
        assert ranges(here, SHARD)[-1].startswith("bytes=100000-")

    def test_a_killed_download_goes_on_in_the_next_run(self, here, repository, checkpoint, folder, tmp_path):
        here.slow = 0.1
        code = (
            "import sys; from pathlib import Path; from gptoss_convert.hub import Repository\n"
            f"Repository.open({REPOSITORY!r}).fetch({SHARD!r}, Path(sys.argv[1]))"
        )
        environment = os.environ | {"HF_ENDPOINT": here.address, "HF_HOME": str(tmp_path / "hf")}
        process = zygote.shared().open(["-c", code, str(folder)], environment)
        deadline = time.monotonic() + 20
        while not sum(path.stat().st_size for path in folder.iterdir()) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.kill()
        process.wait()
        here.slow = 0
        (partial,) = folder.iterdir()
        size = partial.stat().st_size
        assert 0 < size < (checkpoint / SHARD).stat().st_size
        assert repository.fetch(SHARD, folder).path.read_bytes() == (checkpoint / SHARD).read_bytes()
        assert ranges(here, SHARD)[-1].startswith(f"bytes={size}-")

    @pytest.mark.parametrize("into", ["folder", "cache"])
    def test_a_damaged_transfer_is_removed(self, here, repository, checkpoint, folder, into):
        here.damaged = SHARD
        to = folder if into == "folder" else None
        with pytest.raises(GptOssError, match=f"{SHARD} of {REPOSITORY} arrived damaged.*run the same command again"):
            repository.fetch(SHARD, to)
        assert list(folder.iterdir()) == []
        here.damaged = None
        assert repository.fetch(SHARD, to).path.read_bytes() == (checkpoint / SHARD).read_bytes()

    def test_what_cannot_be_stored(self, repository, tmp_path):
        with pytest.raises(GptOssError, match=r"cannot save .*nowhere.*: No such file"):
            repository.fetch(SHARD, tmp_path / "nowhere")
        with pytest.raises(GptOssError, match=r"has no file model\.bin"):
            repository.fetch("model.bin", tmp_path)


class TestHeaders:
    def test_are_read_without_the_weights(self, here, repository, checkpoint, folder):
        opened, local = repository.checkpoint(folder), Checkpoint.open(checkpoint)
        assert opened.tensors == local.tensors
        shards = [path.name for path in checkpoint.glob("*.safetensors")]
        sent = sum(request.sent for name in shards for request in here.of(name))
        first = {
            name: min(t.start for t in local.tensors.values() if local.file_of[t.name].name == name) for name in shards
        }
        assert sent == sum(first.values())  # where tensors begin, headers end
        name = "lm_head.weight"
        with pytest.raises(CheckpointError, match="No such file"):
            opened.view(name)
        repository.fetch(opened.file_of[name].name, folder)
        assert np.array_equal(opened.view(name), local.view(name))

    def test_lies(self, here, tmp_path):
        here.folder = write_checkpoint(tmp_path / "lies", CONFIG)
        shard, index = here.folder / SHARD, here.folder / "model.safetensors.index.json"
        good, placed = shard.read_bytes(), json.loads(index.read_text())
        for data in (b"", b"1234567", good[:2000], b"\xff" * 8 + good[8:], good[:20] + b"!" + good[21:]):
            shard.write_bytes(data)
            with pytest.raises(CheckpointError, match=f"^{REPOSITORY}/{SHARD}"):
                Repository.open(REPOSITORY).checkpoint(tmp_path)
        shard.write_bytes(good)
        for text in ("[]", json.dumps({"weight_map": {"a": "../b"}}), json.dumps({"weight_map": {"a": "b"}})):
            index.write_text(text)
            with pytest.raises(CheckpointError, match=REPOSITORY):
                Repository.open(REPOSITORY).checkpoint(tmp_path)
        placed["weight_map"]["lm_head.weight"] = "model-00000-of-00001.safetensors"
        index.write_text(json.dumps(placed))
        with pytest.raises(CheckpointError, match="does not have it"):
            Repository.open(REPOSITORY).checkpoint(tmp_path)

    @pytest.mark.parametrize(
        ("file", "complaint"),
        [("gpt-oss-20b-Q4_K_M.gguf", "holds a GGUF model"), ("adapter_model.safetensors", "holds an adapter")],
    )
    def test_repositories_of_something_else(self, here, tmp_path, file, complaint):
        here.folder = tmp_path / "other"
        here.folder.mkdir()
        (here.folder / file).write_bytes(b"x")
        (here.folder / "config.json").write_text("{}")
        with pytest.raises(CheckpointError, match=f"^{REPOSITORY} {complaint}"):
            Repository.open(REPOSITORY).checkpoint(tmp_path)


class TestRefusals:
    @pytest.mark.parametrize(
        ("repository", "revision", "complaint"),
        [
            ("somebody/nothing", None, "has no repository somebody/nothing, or it is private: run `hf auth login`"),
            (REPOSITORY, "v9", "has no revision v9"),
            ("a/b/c", None, "neither a folder nor a hub repository id"),
        ],
    )
    def test_what_is_not_there(self, here, repository, revision, complaint):
        with pytest.raises(GptOssError, match=complaint):
            Repository.open(repository, revision)

    def test_consent(self, here, repository, folder):
        here.gated = True
        with pytest.raises(GptOssError, match="asks for your consent"):
            Repository.open(REPOSITORY)
        with pytest.raises(GptOssError, match="asks for your consent"):
            repository.fetch(SHARD, folder)

    @pytest.mark.parametrize(
        ("status", "complaint", "tries"),
        [(403, "`hf auth login`", 1), (429, "wait a few minutes", 3), (500, "HTTP status 500", 3)],
    )
    def test_errors_of_the_hub(self, here, repository, folder, status, complaint, tries):
        here.status = status
        with pytest.raises(GptOssError, match=complaint) as error:
            repository.fetch(SHARD, folder)
        assert "\n" not in str(error.value)
        assert len(here.of("/storage/" + f"{REPOSITORY}/{SHARD}")) == tries

    def test_no_network(self, here, monkeypatch):
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        with pytest.raises(GptOssError, match=rf"cannot reach the hub for {REPOSITORY} \(.*\): check the network"):
            Repository.open(REPOSITORY)

    @pytest.mark.parametrize(
        "answer",
        [
            [],
            {"sha": COMMIT},
            {"sha": "../../../etc", "siblings": []},
            {"sha": COMMIT, "siblings": [{"rfilename": SHARD}]},
            {"sha": COMMIT, "siblings": [{"rfilename": SHARD, "size": 8, "lfs": {"sha256": "/../x", "size": 8}}]},
        ],
    )
    def test_no_hub(self, here, monkeypatch, answer):
        monkeypatch.setattr(Handler, "get_model", lambda self, *args: self.send_json(answer))
        with pytest.raises(GptOssError, match="unexpected response from"):
            Repository.open(REPOSITORY)


def test_offline_means_the_cache_or_nothing(here, repository, checkpoint, folder, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(GptOssError, match="HF_HUB_OFFLINE is set"):
        Repository.open(REPOSITORY)
    with pytest.raises(GptOssError, match="HF_HUB_OFFLINE is set"):
        repository.fetch(SHARD, folder)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("config.json", SHARD):
        repository.fetch(name, None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    cached = Repository.open(REPOSITORY, COMMIT)
    assert cached.commit == COMMIT
    assert cached.files == {name: repository.files[name] for name in ("config.json", SHARD)}
    assert cached.fetch(SHARD, folder).sha256 == repository.files[SHARD].sha256


class TestInspect:
    def test_reads_headers_alone(self, online, hub, run, checkpoint):
        done = online("inspect", REPOSITORY, AI_AGENT="somebody")
        assert done.returncode == 0, done.stderr
        assert f"{REPOSITORY}, commit {COMMIT}" in done.stdout
        assert "license: Apache-2.0" in done.stdout
        assert max(request.sent for request in hub.log) < 20_000 < (checkpoint / SHARD).stat().st_size
        # And tells nobody about this machine.
        assert {request.what for request in hub.log if "/api" in request.what} == {f"/api/models/{REPOSITORY}"}
        for request in hub.log:
            parts = {part.split("/")[0].strip() for part in request.agent.split(";")}
            assert parts <= {"unknown", "hf_hub", "python"}

    def test_finds_what_a_download_would_have(self, repository, checkpoint):
        remote, local = Subject.of_repository(repository), Subject.of_folder(checkpoint)
        assert replace(inspect(remote), path="") == replace(inspect(local), path="")
        assert remote.tensors == local.tensors

    def test_one_tensor(self, here, repository, checkpoint):
        name = "model.layers.3.self_attn.q_proj.weight"
        found = statistics(Subject.of_repository(repository), name)
        assert found == statistics(Subject.of_folder(checkpoint), name)
        assert here.log[-1].sent == tensors_of(CONFIG)[name][0].nbytes

    def test_a_converted_short_name_stays_local(self, online, hub, demo_folder, tmp_path):
        shutil.copytree(demo_folder, tmp_path / "home" / "openai--gpt-oss-20b")
        done = online("inspect", "gpt-oss-20b", GPTOSS_MLX_HOME=str(tmp_path / "home"))
        assert "converted with mxfp4-q4" in done.stdout
        assert hub.log == []

    @pytest.mark.parametrize(
        ("args", "status", "complaint"),
        [
            (["gpt-oss-120b"], 1, "the hub has no repository openai/gpt-oss-120b"),
            ([REPOSITORY, "--revision", "v9"], 1, "has no revision v9"),
            ([Path(__file__).parent, "--revision", "main"], 2, "--revision is for a Hugging Face id"),
        ],
    )
    def test_refusals(self, online, args, status, complaint):
        done = online("inspect", *args)
        assert done.returncode == status
        assert complaint in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr


def test_a_hub_id_is_converted(online, hub, tmp_path):
    hub.cuts[SHARD] = [100_000]
    done = online("convert", REPOSITORY, tmp_path / "dest")
    assert done.returncode == 0, done.stderr
    provenance = json.loads((tmp_path / "dest" / "provenance.json").read_text())
    assert provenance["source"] == {"id": REPOSITORY, "revision": COMMIT}
    assert (tmp_path / "dest" / "LICENSE").read_text() == "Apache-2.0\n"
    assert not [request for request in hub.log if "README.md" in request.what or "original" in request.what]
    done = online("convert", "somebody/nothing", tmp_path / "other")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "has no repository somebody/nothing" in line
    assert not (tmp_path / "other").exists()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The weights that a conversion makes which nothing interrupts."""
    root = tmp_path_factory.mktemp("whole")
    convert(write_checkpoint(root / "repository", CONFIG, shards=4), root / "model")
    return weights(root / "model")


class TestConversion:
    """Shard by shard: what was downloaded for a conversion goes when it has been used."""

    @pytest.fixture
    def checkpoint(self, tmp_path):
        return write_checkpoint(tmp_path / "repository", CONFIG, shards=4)

    @pytest.fixture(autouse=True)
    def recorded_often(self, monkeypatch):
        monkeypatch.setattr(pipeline, "DURABLE", 1)

    def test_one_shard_after_the_other(self, here, whole, tmp_path):
        present, stages = [], {}

        def look(step):
            present.append(len(list((tmp_path / ".dest.partial").glob("source-*/model-*"))))
            stages[step.stage] = (step.done, step.total)

        convert(REPOSITORY, tmp_path / "dest", on_progress=look)
        assert weights(tmp_path / "dest") == whole
        assert max(present) <= 3  # one in use, one that comes, and one on its way out
        assert not list((tmp_path / "dest").glob("source*"))
        assert all(done == total for done, total in stages.values())
        assert next(iter(stages)) == "download"
        provenance = json.loads((tmp_path / "dest" / "provenance.json").read_text())
        shards = sorted((tmp_path / "repository").glob("*.safetensors"))
        assert provenance["source_sha256"] == {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in shards}
        assert not list((tmp_path / "cache").rglob("*.safetensors"))

    def test_a_full_disk_takes_one_at_a_time(self, here, whole, tmp_path, monkeypatch):
        monkeypatch.setattr(downloads.Download, "_has_room_for", lambda *args: False)
        monkeypatch.setattr(pipeline, "DURABLE", 10**9)
        coming = []

        def look(step):
            if step.stage == "download":
                coming.append({path.name for path in (tmp_path / ".dest.partial").glob("source-*/.model-*")})

        convert(REPOSITORY, tmp_path / "dest", on_progress=look)
        assert weights(tmp_path / "dest") == whole
        assert all(len(names) <= 1 for names in coming)

    def test_sources_can_be_kept(self, here, whole, tmp_path):
        convert(REPOSITORY, tmp_path / "dest", keep_source=True)
        assert weights(tmp_path / "dest") == whole
        assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 4
        here.log.clear()
        convert(REPOSITORY, tmp_path / "again")
        assert weights(tmp_path / "again") == whole
        assert not [request for request in here.log if request.what.startswith("model-")]
        assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 4

    def test_a_download_that_breaks_goes_on(self, here, whole, tmp_path):
        def cut(step):
            here.cuts.setdefault("model-00002-of-00003.safetensors", [50_000, 0, 0, 0])

        with pytest.raises(GptOssError, match="run the same command again"):
            convert(REPOSITORY, tmp_path / "dest", on_progress=cut)
        assert (tmp_path / ".dest.partial" / "journal.json").exists()
        here.log.clear()
        here.cuts.clear()
        convert(REPOSITORY, tmp_path / "dest")
        assert weights(tmp_path / "dest") == whole
        assert sum(request.sent for request in here.of("model-00000-of-00003.safetensors")) < 10_000  # its header
        assert "bytes=50000-" in str(ranges(here, "model-00002-of-00003.safetensors"))

    def test_killed(self, here, hub, whole, tmp_path, environment, command):
        hub.slow = 0.05
        variables = environment | {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "hf")}
        args = [*command[1:], "convert", REPOSITORY, str(tmp_path / "dest")]
        for _ in range(2):
            process = zygote.shared().open(args, variables)
            before = len(hub.log)
            while len(hub.log) < before + 12 and process.returncode is None:
                time.sleep(0.01)
            process.kill()
            process.wait()
        hub.slow = 0
        convert(REPOSITORY, tmp_path / "dest")
        assert weights(tmp_path / "dest") == whole

    def test_damage_is_noticed_before_it_is_converted(self, here, whole, tmp_path):
        here.damaged = "model-00001-of-00003.safetensors"
        with pytest.raises(GptOssError, match="arrived damaged"):
            convert(REPOSITORY, tmp_path / "dest")
        here.damaged = None
        convert(REPOSITORY, tmp_path / "dest")
        assert weights(tmp_path / "dest") == whole


def weights(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}
