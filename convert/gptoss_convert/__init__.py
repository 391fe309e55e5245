"""Convert gpt-oss checkpoints into 4-bit MLX folders: `convert(source, dest, recipe)`."""

from gptoss_mlx.progress import Progress

from .errors import ConvertError
from .pipeline import ConversionReport, convert
from .recipes import DEFAULT_RECIPE, RECIPES

__all__ = ["DEFAULT_RECIPE", "RECIPES", "ConversionReport", "ConvertError", "Progress", "convert"]
