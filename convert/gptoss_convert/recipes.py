"""Which weights get which quantization: `recipes.toml`, or a file of the user's with the same keys; checked here.

Router, norms, sinks and biases have no entry, because no recipe touches them: they stay BF16.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from gptoss_mlx.model.config import AFFINE_BITS, AFFINE_GROUP_SIZES, Quantization
from gptoss_mlx.untrusted import os_error_text, parse_toml, read_named

from .errors import ConvertError

MXFP4 = Quantization(group_size=32, bits=4, mode="mxfp4")
NAMED_FORMS: dict[str, Quantization | None] = {"mxfp4": MXFP4, "bf16": None}

# A part of a module's path -> its tensor group, the key in a recipe.
TENSOR_GROUPS = {
    ".mlp.experts.": "experts",
    ".self_attn.": "attention",
    "model.embed_tokens": "embedding",
    "lm_head": "head",
}
DEFAULT_RECIPE = "mxfp4-q4"
# KL divergence of a recipe's predictions from the source's, in nats, measured on the embedded demo model: a small one,
# which shows errors that a large one hardly notices. docs/recipes.md has the command.
DIVERGENCE = {
    "mxfp4-q4": 0.04272,
    "mxfp4-q4-small": 0.04150,
    "mxfp4-mixed": 0.00238,
    "mxfp4-q8": 0.00089,
    "mxfp4-bf16": 0.0,
    "q4": 0.05022,
}
MAX_BYTES = 2**20  # of a recipe's file


class RecipeError(ConvertError):
    """A recipe that does not exist or says something that cannot be done."""


@dataclass(frozen=True)
class Recipe:
    """How each group of weights is stored; None is BF16."""

    name: str
    summary: str
    groups: Mapping[str, Quantization | None]
    modules: Mapping[str, Quantization | None]
    """Pattern of module paths, as in a shell -> the form of modules that differ from their group; the first match
    counts."""

    def of(self, module: str) -> Quantization | None:
        """The quantization of a module's weight, by its path."""
        group = next((group for part, group in TENSOR_GROUPS.items() if part in module), None)
        if group is None:
            return None
        patterns = (form for pattern, form in self.modules.items() if fnmatchcase(module, pattern))
        return next(patterns, self.groups[group])

    @property
    def default(self) -> Quantization | None:
        """The form that most modules outside the experts share, as `config.json` names it once for all."""
        forms = [self.groups[group] for group in ("attention", "head", "embedding", "experts")]
        return next((form for form in forms if form), None)

    def unused_pattern(self, modules: list[str]) -> str | None:
        """A pattern that fits none of a model's modules: probably a typing error."""
        return next((p for p in self.modules if not any(fnmatchcase(module, p) for module in modules)), None)


def recipe_named(name: str) -> Recipe:
    """One of ours, or the one in a TOML file of that name. Raises RecipeError."""
    if name in RECIPES:
        return RECIPES[name]
    path = Path(os.path.expanduser(name))
    if path.suffix != ".toml":
        raise RecipeError(f"there is no recipe {name!r}: choose one of {', '.join(RECIPES)}, or a .toml file")
    try:
        return recipe_of(path.stem, parse_toml(read_named(path, MAX_BYTES)))
    except OSError as error:
        raise RecipeError(f"cannot read the recipe {path}: {os_error_text(error)}") from None
    except ValueError as error:
        raise RecipeError(f"{path} is not a recipe in TOML: {error}") from None


def recipe_of(name: str, data: Mapping[str, Any]) -> Recipe:
    """Check what a recipe's file says. Raises RecipeError naming the key."""
    groups = list(TENSOR_GROUPS.values())
    if unknown := [key for key in data if key not in (*groups, "modules", "summary")]:
        raise RecipeError(f"the recipe {name} has the key {unknown[0]!r}; it may have {', '.join(groups)}, modules")
    if missing := [group for group in groups if group not in data]:
        raise RecipeError(f'the recipe {name} lacks {missing[0]}: "mxfp4", "bf16", or {{ bits, group_size }}')
    modules = data.get("modules", {})
    if not isinstance(modules, dict):
        raise RecipeError(f"the recipe {name}: modules is not a table of patterns")
    return Recipe(
        name,
        str(data.get("summary", "")),
        {group: _form(name, group, data[group]) for group in groups},
        {pattern: _form(name, pattern, value) for pattern, value in modules.items()},
    )


def _form(recipe: str, key: str, value: Any) -> Quantization | None:
    if isinstance(value, str) and value in NAMED_FORMS:
        return NAMED_FORMS[value]
    if isinstance(value, dict) and value.keys() == {"bits", "group_size"}:
        bits, group_size = value["bits"], value["group_size"]
        if type(bits) is int and type(group_size) is int and bits in AFFINE_BITS and group_size in AFFINE_GROUP_SIZES:
            return Quantization(group_size, bits)
    raise RecipeError(
        f'the recipe {recipe}: {key} is {value!r}, not "mxfp4", "bf16", or {{ bits, group_size }} with bits of'
        f" {', '.join(map(str, AFFINE_BITS))} and a group_size of {', '.join(map(str, AFFINE_GROUP_SIZES))}"
    )


def _ours() -> dict[str, Recipe]:
    data = parse_toml(Path(__file__).with_name("recipes.toml").read_bytes())
    return {name: recipe_of(name, entry) for name, entry in data.items()}


RECIPES = _ours()
