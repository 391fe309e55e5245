"""A model folder in, token ids in, token ids out."""
