"""`convert` and the other commands that handle checkpoints, and the progress that they show."""

import json
import shutil

from checkpoints import config_of, write_checkpoint
from cli.test_cli import assert_one_line_error
from gptoss_convert import RECIPES


def test_recipes_in_the_help_are_those_that_there_are(run):
    text = " ".join(run("convert", "--help").stdout.split())
    assert all(f"{recipe.name} {recipe.summary}" in text for recipe in RECIPES.values())


def test_convert(run, tmp_path):
    source = write_checkpoint(tmp_path / "source", config_of())
    done = run("convert", source, tmp_path / "dest", "--recipe", "mxfp4-q8")
    assert done.returncode == 0
    assert "mxfp4-q8" in done.stdout
    assert json.loads((tmp_path / "dest" / "provenance.json").read_text())["recipe"] == "mxfp4-q8"
    assert_one_line_error(run("convert", source, tmp_path / "dest"), "exists already")
    assert_one_line_error(run("convert", tmp_path / "dest", tmp_path / "again"), "converted already")
    assert_one_line_error(run("generate", source, "-p", "x"), f"gptoss-mlx convert {source} DEST")


def test_without_a_recipe_it_is_chosen_and_said_why(run, tmp_path):
    source = write_checkpoint(tmp_path / "source", config_of())
    done = run("convert", source, tmp_path / "dest")
    assert done.returncode == 0
    (note,) = done.stderr.splitlines()[:1]
    assert note.startswith("note: recipe mxfp4-q8, the most faithful in 8 bits or less that keeps everything in memory")
    assert json.loads((tmp_path / "dest" / "provenance.json").read_text())["recipe"] == "mxfp4-q8"


def test_convert_refuses_what_it_cannot_read(run_here, tmp_path):
    source = write_checkpoint(tmp_path / "source", config_of())
    shard = max(source.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-100])
    assert_one_line_error(run_here("convert", source, tmp_path / "dest"), "truncated", shard.name)
    assert_one_line_error(run_here("convert", tmp_path, tmp_path / "dest"), "config.json")
    assert_one_line_error(run_here("convert", shard, tmp_path / "dest"), "is a file")
    assert_one_line_error(run_here("convert", "not a name", tmp_path / "dest"), "neither a folder nor")
    assert_one_line_error(run_here("convert", source, tmp_path / "dest", "--recipe", "q3"), "q3", status=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_the_card_of_a_folder_with_a_readme_is_that_readme(run, demo_folder, tmp_path):
    folder = shutil.copytree(demo_folder, tmp_path / "model")
    (folder / "README.md").write_text("# My model\n")
    done = run("upload", folder, "somebody/model", "--dry-run")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("# My model\n")
    assert "README.md" in done.stdout


def test_progress_without_a_terminal_is_a_line_every_tenth(capsys, monkeypatch):
    from gptoss_convert import Progress
    from gptoss_mlx.terminal import progress_bars

    clock = iter(range(0, 200, 1))
    monkeypatch.setattr(progress_bars.time, "monotonic", lambda: next(clock))
    with progress_bars.conversion_progress() as show:
        for done in range(0, 1001, 50):
            show(Progress("convert", done * 10**6, 10**9))
        show(Progress("checksums", 1, 1))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "convert 10 % of 1.00 GB, 50.0 MB/s, 18 s left"
    assert lines[-1] == "convert 100 % of 1.00 GB, 50.0 MB/s"
    assert len(lines) == 10
