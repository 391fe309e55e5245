#!/usr/bin/env python3
"""Golden prompts: what the openai-harmony package renders for tests/harmony/cases.py.

    python tests/harmony/make_golden.py O200K_FOLDER      (writes tests/harmony/golden.json)

O200K_FOLDER holds o200k_base.tiktoken, so that the package needs no network. Where the package departs from its own
format document (it drops analysis before the first final answer only), the case says which messages to leave out, and
the package renders the rest.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from harmony.cases import CASES
from harmony.oracle import Oracle


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    oracle = Oracle(Path(sys.argv[1]))
    golden = {name: oracle.text(case) for name, case in CASES.items()}
    Path(__file__).with_name("golden.json").write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
