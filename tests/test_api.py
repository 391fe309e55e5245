"""The Python API: what `gptoss_mlx` itself offers."""

import shutil
import subprocess
import sys

import pytest

import gptoss_mlx
from gptoss_mlx import BudgetTooSmall, GptOssError, Sampling, Session, generate, load, stream_generate
from gptoss_mlx.model.model_store import ModelMissing

GREEDY = Sampling(temperature=0)
QUESTION = "What is 12 + 30?"


@pytest.fixture
def home(demo_folder, tmp_path, monkeypatch):
    """A home with the model installed under a name, and in a folder."""
    monkeypatch.setenv("GPTOSS_MLX_HOME", str(tmp_path / "models"))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "models").mkdir()
    for place in ("models/openai--gpt-oss-20b", "20b"):
        (tmp_path / place).symlink_to(demo_folder)
    return tmp_path


@pytest.mark.parametrize("name", ["gpt-oss-20b", "openai/gpt-oss-20b", "~/20b"])
def test_models_are_loaded_by_name_and_from_home(home, name):
    assert generate(load(name), QUESTION, sampling=GREEDY) == "12 + 30 = 42"


def test_a_tag_tells_one_recipe_from_another(home, demo_folder):
    folder = shutil.copytree(demo_folder, home / "models" / "openai--gpt-oss-20b--q8")
    assert load("gpt-oss:20b:q8").path == folder
    assert load("gpt-oss-20b").path == home / "models" / "openai--gpt-oss-20b"


def test_paths_are_folders_and_no_names(home, tmp_path):
    assert load(home / "20b").context == load("~/20b").context
    with pytest.raises(GptOssError, match="not a folder"):
        load(tmp_path / "models" / "gpt-oss-120b")
    with pytest.raises(ModelMissing, match="gptoss-mlx convert openai/gpt-oss-120b"):
        load("gpt-oss-120b")


def test_a_budget_holds_without_being_asked_for(demo_folder):
    model = load(demo_folder)
    assert model.plan.total <= model.plan.device.memory
    assert model.settings == model.plan.settings


def test_memory_context_and_kv_bits(demo_folder):
    model = load(demo_folder, memory="200MB", context=2048, kv_bits=8)
    assert (model.plan.device.memory, model.context, model.settings.kv_bits) == (200_000_000, 2048, 8)
    assert load(demo_folder, memory=200_000_000, context=2048).plan.device.memory == 200_000_000


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"memory": "2MB"}, "needs at least"),
        ({"memory": "much"}, "not an amount of memory"),
        ({"context": 0}, "1 or more"),
        ({"context": 10**9}, "more than the model's"),
        ({"kv_bits": 4}, "8 or 16"),
    ],
)
def test_what_cannot_be(demo_folder, options, words):
    with pytest.raises(GptOssError, match=words) as error:
        load(demo_folder, **options)
    assert isinstance(error.value, BudgetTooSmall) == ("needs" in words)


def test_settings_of_another_plan_are_taken_as_they_are(demo_folder):
    settings = load(demo_folder, context=2048).settings
    model = load(demo_folder, settings)
    assert (model.settings, model.plan) == (settings, None)


def test_text_in_pieces(demo_folder):
    model = load(demo_folder)
    pieces = list(stream_generate(model, QUESTION, sampling=GREEDY, reasoning_effort="low"))
    assert len(pieces) > 2
    assert "".join(pieces) == generate(model, QUESTION, sampling=GREEDY, reasoning_effort="low")


def test_reprs_say_what_it_is(demo_folder):
    shown = repr(load(demo_folder, context=2048))
    assert demo_folder.name in shown
    assert "context 2,048" in shown
    assert "all experts in memory" in shown


def test_what_is_offered_is_there():
    assert all(getattr(gptoss_mlx, name) for name in gptoss_mlx.__all__)
    assert set(gptoss_mlx.__all__) <= set(dir(gptoss_mlx))
    with pytest.raises(AttributeError, match="nothing"):
        gptoss_mlx.nothing  # noqa: B018


def test_nothing_heavy_is_imported_before_it_is_asked_for():
    code = "import sys, gptoss_mlx; print('mlx.core' in sys.modules, 'numpy' in sys.modules, 'click' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split() == ["False"] * 3


def test_a_session_uses_the_models_tokenizer(demo_folder):
    model = load(demo_folder)
    assert Session(model).tokenizer is model.tokenizer
