"""Conversions that measure: calibrated on a text, compared with their source, with an adapter; from here or the hub."""

import json
import shutil

import numpy as np
import pytest

from checkpoints import write_checkpoint
from gptoss_convert import convert, fidelity, pipeline
from gptoss_convert.adapters import open_adapter
from gptoss_convert.reference_network import ConvertedWeights
from gptoss_convert.sources import Source
from gptoss_mlx.demo import CHECKPOINT
from gptoss_mlx.errors import GptOssError

from .hub import serving, use
from .test_adapters import CONFIG as SMALL
from .test_adapters import GOLDEN, SEED

TEXT = "What is 347 + 285? Add the columns from the right. " * 20


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibrated") / "model"
    convert(CHECKPOINT, folder, "q4", calibration=TEXT)
    return folder


def test_calibration(calibrated, tmp_path):
    """On the text of the calibration, the calibrated model is nearer to its source."""
    convert(CHECKPOINT, tmp_path / "plain", "q4")
    source = Source(CHECKPOINT)
    kl = [
        fidelity.compare(source, folder, TEXT, 500).predictions.kl_mean for folder in (calibrated, tmp_path / "plain")
    ]
    assert kl[0] < 0.9 * kl[1]
    provenance = json.loads((calibrated / "provenance.json").read_text())
    assert len(provenance["calibration_sha256"]) == 64
    assert not list(calibrated.glob("*.npz"))


def test_a_calibration_is_not_repeated(calibrated, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "DURABLE", 1)

    def interrupt(step):
        if step.stage == "convert" and step.done > step.total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(CHECKPOINT, tmp_path / "model", "q4", calibration=TEXT, on_progress=interrupt)
    stages = set()
    convert(CHECKPOINT, tmp_path / "model", "q4", calibration=TEXT, on_progress=lambda step: stages.add(step.stage))
    assert stages == {"convert", "checksums"}
    assert contents(tmp_path / "model") == contents(calibrated)


def test_a_calibration_needs_a_text(run, tmp_path):
    (tmp_path / "text").write_text("a")
    done = run("convert", CHECKPOINT, tmp_path / "model", "--calibrate", tmp_path / "text")
    assert done.returncode == 1
    assert "at least 2" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text"]


def test_the_command_compares_and_shows_the_card(run, tmp_path):
    done = run("convert", CHECKPOINT, tmp_path / "model", "--verify", "--upload", "somebody/model", "--dry-run")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "model" / "fidelity.json").read_text())
    assert 0 < found["kl_mean"] < 2  # a text unlike all that it was trained on
    for part in ("KL divergence, mean", 'library_name: "mlx"', "fidelity.json", "in total, to somebody/model"):
        assert part in done.stdout
    assert run("convert", CHECKPOINT, tmp_path / "again", "--dry-run").returncode == 2


def test_an_adapter(tmp_path):
    """Merged into the weights that are stored: attention in BF16 exactly, experts as near as MXFP4 is."""
    source = Source(write_checkpoint(tmp_path / "source", SMALL, SEED))
    folder = next(path for path in sorted(GOLDEN.iterdir()) if "experts" in path.name)
    adapter = open_adapter(folder, source.config)
    convert(source.folder, tmp_path / "model", "mxfp4-bf16", adapter=folder)
    stored = ConvertedWeights(tmp_path / "model")
    for item in source.weights():
        values = stored.values(item.name)
        if not adapter.changes(item):
            assert np.array_equal(values, item.as_f32(slice(None)))
        else:
            merged = adapter.merged(item, slice(None))
            bound = 0.2 if ".experts." in item.module else 2**-8
            assert np.linalg.norm(values - merged) <= bound * np.linalg.norm(merged)
    provenance = json.loads((tmp_path / "model" / "provenance.json").read_text())
    assert provenance["adapter_sha256"] == adapter.sha256


def test_from_the_hub(tmp_path, monkeypatch, calibrated):
    """A calibration and a comparison need all of the source at once; it goes all the same."""
    repository = shutil.copytree(CHECKPOINT, tmp_path / "repository")
    with serving(repository, "somebody/demo") as hub:
        use(hub, monkeypatch, tmp_path / "cache")
        convert("somebody/demo", tmp_path / "model", "q4", calibration=TEXT)
        with pytest.raises(GptOssError, match="add --keep-source"):
            convert("somebody/demo", tmp_path / "verified", verify=True)
        report = convert("somebody/demo", tmp_path / "verified", verify=True, keep_source=True)
    weights = {name: data for name, data in contents(calibrated).items() if name.endswith(".safetensors")}
    assert weights.items() <= contents(tmp_path / "model").items()
    assert report.fidelity.predictions.kl_mean > 0
    assert not list((tmp_path / "verified").glob("source-*"))
