"""Convert gpt-oss checkpoints into 4-bit MLX folders: `convert(source, dest, recipe)`."""

from gptoss_mlx.progress import Progress

from .errors import ConvertError
from .pipeline import Report, convert
from .recipes import DEFAULT_RECIPE, RECIPES

__all__ = ["DEFAULT_RECIPE", "RECIPES", "ConvertError", "Progress", "Report", "convert"]
