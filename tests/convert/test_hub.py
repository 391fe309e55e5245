"""Conversion by hub id, from a local stand-in for the hub, by the real command and the real huggingface_hub."""

import json

import pytest

from checkpoints import config_of, write_checkpoint

from .hub import COMMIT, serving

REPOSITORY = "somebody/small-gpt-oss"


@pytest.fixture
def hub(tmp_path):
    folder = write_checkpoint(tmp_path / "repository", config_of())
    (folder / "README.md").write_text("not needed")
    (folder / "LICENSE").write_text("Apache-2.0\n")
    (folder / "original").mkdir()
    (folder / "original" / "model.safetensors").write_bytes(b"the same weights again")
    with serving(folder, REPOSITORY) as hub:
        yield hub


@pytest.fixture
def online(run, hub, tmp_path):
    """The command, with the stand-in as its hub and a cache of its own."""

    def online(*args, **changes):
        return run(*args, **({"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "hf")} | changes))

    return online


def test_a_hub_id_is_downloaded_and_converted(online, hub, tmp_path):
    done = online("convert", REPOSITORY, tmp_path / "dest")
    assert done.returncode == 0, done.stderr
    provenance = json.loads((tmp_path / "dest" / "provenance.json").read_text())
    assert provenance["source"] == {"id": REPOSITORY, "revision": COMMIT}
    assert (tmp_path / "dest" / "LICENSE").read_text() == "Apache-2.0\n"
    assert "README.md" not in hub.requests
    assert not [name for name in hub.requests if "/" in name]
    fetched = len(hub.requests)
    assert online("convert", REPOSITORY, tmp_path / "again", "--revision", COMMIT).returncode == 0
    assert len(hub.requests) == fetched  # what is here is not fetched again


@pytest.mark.parametrize(
    ("repository", "args", "complaint"),
    [
        ("somebody/nothing", [], "has no repository somebody/nothing"),
        (REPOSITORY, ["--revision", "v9"], "has no revision v9"),
        ("a/b/c", [], "neither a folder nor a hub repository id"),
    ],
)
def test_what_the_hub_does_not_have(online, tmp_path, repository, args, complaint):
    done = online("convert", repository, tmp_path / "dest", *args)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert complaint in line
    assert not (tmp_path / "dest").exists()


def test_no_network(online, tmp_path):
    done = online("convert", REPOSITORY, tmp_path / "dest", HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 1
    assert "cannot reach the hub" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_transfer_that_breaks_can_be_repeated(online, hub, tmp_path):
    hub.cut = max(path.name for path in hub.folder.glob("*.safetensors"))
    done = online("convert", REPOSITORY, tmp_path / "dest")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "run the same command again" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "dest").exists()
    hub.cut = None
    assert online("convert", REPOSITORY, tmp_path / "dest").returncode == 0
