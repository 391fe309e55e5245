"""`python -m gptoss_mlx` is `gptoss-mlx`."""

from .cli import main

main()
