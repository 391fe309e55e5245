"""Convert gpt-oss checkpoints into 4-bit MLX folders."""
