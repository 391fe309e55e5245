#!/usr/bin/env python3
"""Writes a Homebrew formula for a release, for a tap: gptoss-mlx.rb.in with the wheels of everything that it needs.

    release/homebrew/formula.py dist/gptoss_mlx-0.1.0-cp313-cp313-macosx_14_0_arm64.whl \\
        --url https://.../that-wheel.whl --homepage https://... >gptoss-mlx.rb

Which versions go together, uv says; their addresses and checksums are those of the package index that it is set up for.
The wheel says which Python it is for.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from packaging.tags import Tag, compatible_tags, cpython_tags, mac_platforms
from packaging.utils import parse_wheel_filename

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
TEMPLATE = Path(__file__).with_name("gptoss-mlx.rb.in")
MACOS = (14, 0)  # as MLX's wheels
RESOURCE = """\
  resource "{name}" do
    url "{url}", using: :nounzip
    sha256 "{sha256}"
  end"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("wheel", type=Path, help="the wheel of this project for macOS")
    parser.add_argument("--url", required=True, help="where the wheel will be")
    parser.add_argument("--homepage", required=True)
    given = parser.parse_args()
    print(formula(given.wheel, given.url, given.homepage, lock(python_of(given.wheel))), end="")


def python_of(wheel: Path) -> tuple[int, int]:
    interpreter = next(iter(parse_wheel_filename(wheel.name)[3])).interpreter
    return int(interpreter[2]), int(interpreter[3:])


def lock(python: tuple[int, int]) -> Mapping[str, Any]:
    """What has to be installed beside this project on a Mac: a pylock.toml, of wheels alone."""
    command = [
        "uv",
        "pip",
        "compile",
        "--quiet",
        "--format",
        "pylock.toml",
        "--only-binary",
        ":all:",
        "--python-version",
    ]
    command += [".".join(map(str, python)), "--python-platform", "aarch64-apple-darwin", "pyproject.toml"]
    environment = os.environ | {"MACOSX_DEPLOYMENT_TARGET": ".".join(map(str, MACOS))}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    return tomllib.loads(done.stdout)


def formula(wheel: Path, url: str, homepage: str, locked: Mapping[str, Any]) -> str:
    """The text of the formula."""
    python = python_of(wheel)
    fitting = [
        *cpython_tags(python, platforms=mac_platforms(MACOS, "arm64")),
        *compatible_tags(python, f"cp{python[0]}{python[1]}", mac_platforms(MACOS, "arm64")),
    ]
    values = {
        "HOMEPAGE": homepage,
        "URL": url,
        "VERSION": str(parse_wheel_filename(wheel.name)[1]),
        "SHA256": hashlib.sha256(wheel.read_bytes()).hexdigest(),
        "RESOURCES": "\n\n".join(resource(package, fitting) for package in locked["packages"]),
        "PYTHON": f"{python[0]}.{python[1]}",
    }
    text = TEMPLATE.read_text(encoding="utf-8")
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    return text


def resource(package: Mapping[str, Any], fitting: Iterable[Tag]) -> str:
    """The wheel that fits best, as `pip` would take it."""
    ranks = {tag: rank for rank, tag in enumerate(fitting)}
    found = [(rank, wheel) for wheel in package.get("wheels", []) if (rank := rank_of(wheel["url"], ranks)) is not None]
    if not found:
        sys.exit(f"error: {package['name']} {package['version']} has no wheel for this Python on a Mac")
    _, best = min(found, key=lambda each: each[0])
    return RESOURCE.format(name=package["name"], url=best["url"], sha256=best["hashes"]["sha256"])


def rank_of(url: str, ranks: Mapping[Tag, int]) -> int | None:
    tags = parse_wheel_filename(unquote(urlsplit(url).path.rpartition("/")[2]))[3]
    return min((ranks[tag] for tag in tags if tag in ranks), default=None)


if __name__ == "__main__":
    main()
