"""What several tests of the converter look at."""

import pytest

from checkpoints import write_checkpoint
from gptoss_convert import RECIPES, convert

from .test_sources import CONFIG, bf16_folder, original_folder


@pytest.fixture(scope="session")
def every_form(tmp_path_factory):
    """One random model in all layouts of a source, and the published one with every recipe, by name; not to change."""
    root = tmp_path_factory.mktemp("forms")
    made = {"published": write_checkpoint(root / "published", CONFIG)}
    made |= {"original": original_folder(root / "original"), "plain": bf16_folder(root / "plain")}
    for recipe in RECIPES:
        convert(made["published"], root / recipe, recipe)
        made[recipe] = root / recipe
    return made
