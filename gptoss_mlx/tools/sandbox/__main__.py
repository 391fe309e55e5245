"""`python -I __main__.py SETTINGS`, which are JSON: by path, with neither the package nor its folder in `sys.path`."""

import json
import os
import sys
import types

if not __package__:
    __package__ = "sandbox"
    sys.modules[__package__] = package = types.ModuleType(__package__)
    package.__path__ = [os.path.dirname(__file__)]

from .keeper import error_text, keep
from .protocol import Settings
from .worker import work

if __name__ == "__main__":
    settings = Settings(**json.loads(sys.argv[1]))
    try:
        (work if settings.isolation == "inside" else keep)(settings)
    except OSError as error:
        sys.exit(error_text(error))
