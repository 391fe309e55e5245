"""gpt-oss on the machine that you own: memory-mapped, offline, inside a stated budget."""
