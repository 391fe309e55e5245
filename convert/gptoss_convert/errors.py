"""The error of a conversion that cannot be done."""

from gptoss_mlx.errors import GptOssError


class ConvertError(GptOssError):
    """A conversion that cannot be done, however often it is tried; nothing is left at the destination."""
