"""Coverage-guided fuzzing of `read_header` and of `ModelConfig.from_dict`, run by hand.

It needs atheris, which is no dependency of the project's, and NumPy:

    python3.11 -m venv fuzz && fuzz/bin/pip install atheris numpy
    mkdir corpus
    PYTHONPATH=.:tests fuzz/bin/python tests/hostile/fuzz_header.py header corpus -max_total_time=3600 -max_len=4096

With `config` instead of `header` it fuzzes config.json. Whatever `hostile.checks` raises is a finding.
"""

import sys
import tempfile
from pathlib import Path
from random import Random

import atheris

with atheris.instrument_imports(include=["gptoss_mlx", "json"]):
    import json

    from hostile.checks import check_config, check_header, config_seeds, file_of, header_seeds
    from hostile.mutations import mutated, text_of

MEMORY = Path("/dev/shm")  # where a file costs no disk
PREFIX = {"header": 3, "config": 0}  # bytes before the JSON of an input


def main() -> None:
    target, corpus = sys.argv.pop(1), Path(sys.argv[1])
    for number, seed in enumerate({"header": header_seeds, "config": config_seeds}[target]()):
        (corpus / f"seed-{number}").write_bytes(seed)

    def mutator(data: bytes, most: int, seed: int) -> bytes:
        """Every other time a change of what the JSON says, else one of bytes."""
        random, start = Random(seed), PREFIX[target]
        if random.random() < 0.5:
            try:
                value = json.loads(data[start:])
                for _ in range(random.randrange(1, 4)):
                    value = mutated(value, random)
                changed = data[:start] + text_of(value).encode()
                if len(changed) <= most:
                    return changed
            except (ValueError, RecursionError):
                pass
        return atheris.Mutate(data, most)

    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        path = Path(folder) / "model.safetensors"

        def one_header(data: bytes) -> None:
            path.write_bytes(file_of(data))
            check_header(path)

        one_input = {"header": one_header, "config": check_config}[target]
        atheris.Setup(sys.argv, one_input, custom_mutator=mutator)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
