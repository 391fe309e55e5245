"""Search over the text files of one folder, which are read each time: no index can be stale, and 40 MB take less than a
second.

Files that are replaced while they are searched lead nowhere outside of the folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import log
from pathlib import Path

from ..untrusted import descriptor_beneath, open_beneath, read_up_to
from .pages import Page, without_links

MAX_BYTES = 4 * 2**20  # of a file; larger ones are neither found nor opened
MAX_WORDS = 32  # of a query
MAX_HITS = 10_000  # files of which a search remembers that they have a word
SNIPPET_LINES = 3
K1, B = 1.2, 0.75  # of BM25, as usual
NAME_WEIGHT = 4  # a word in the path counts as that many in the text

_WORD = re.compile(r"[^\W_]{1,64}")


def words_of(query: str) -> list[str]:
    """The words to look for, each once."""
    return list(dict.fromkeys(_WORD.findall(query.lower())))[:MAX_WORDS]


def ranked(root: Path, words: list[str]) -> tuple[list[Path], dict[re.Pattern[str], float]]:
    """The files with any of the words, best first, and the weight of each word's pattern: rare words weigh more.

    BM25 with lengths in characters. A word is found where a word begins with it: "file" also in "files".
    """
    # The word comes first in its pattern because the search for a literal is fast.
    patterns = [re.compile(rf"{word}(?<![^\W_]{word})") for word in words]
    hits: list[tuple[str, int, list[int]]] = []
    files = characters = 0
    holders = [0] * len(words)

    def best() -> list[tuple[str, int, list[int]]]:
        return sorted(hits, key=lambda hit: (-score(hit), hit[0].split("/")))

    def score(hit: tuple[str, int, list[int]]) -> float:
        _, length, counts = hit
        half = K1 * (1 - B + B * length * files / characters)
        return sum(weight * n * (K1 + 1) / (n + half) for weight, n in zip(rarity(), counts, strict=True))

    def rarity() -> list[float]:
        return [log(1 + (files - n + 0.5) / (n + 0.5)) for n in holders]

    for path in _files(root):
        try:
            text = read_text(root, path.split("/")).lower()
        except OSError:
            continue
        files, characters = files + 1, characters + len(text)
        name = path.lower()
        counts = [
            len(pattern.findall(text)) + NAME_WEIGHT * len(pattern.findall(name)) if word in text or word in name else 0
            for word, pattern in zip(words, patterns, strict=True)
        ]
        if any(counts):
            hits.append((path, len(text), counts))
            holders = [holder + (count > 0) for holder, count in zip(holders, counts, strict=True)]
        if len(hits) > MAX_HITS:  # the worse half will hardly be among the first few in the end
            del (hits := best())[MAX_HITS // 2 :]
    return [root / path for path, _, _ in best()], dict(zip(patterns, rarity(), strict=True))


def _files(root: Path) -> Iterator[str]:
    """The paths below the root of all regular files that are not hidden; symbolic links are not followed, and folders
    that cannot be listed are left out."""
    folders: list[tuple[str, ...]] = [()]
    while folders:
        above = folders.pop()
        try:
            with _opened(root, above) as folder, os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        folders.append((*above, entry.name))
                    elif entry.is_file(follow_symlinks=False):
                        yield "/".join((*above, entry.name))
        except OSError:
            continue


@contextmanager
def _opened(root: Path, names: Sequence[str]) -> Iterator[int]:
    descriptor = descriptor_beneath(root, names)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def read_text(root: Path, names: Sequence[str]) -> str:
    """The text of a file below the root. Raises OSError also where it is too large, or not text."""
    with open_beneath(root, names) as file:
        begun = file.read(8192)
        if b"\0" in begun:
            raise OSError(0, "it is not text")
        return read_up_to(file, MAX_BYTES, begun).decode(errors="replace")


def snippet(page: Page, rarity: dict[re.Pattern[str], float]) -> tuple[int, str]:
    """The number of the line with the most important of the words, and the text of it and of those below it."""

    def weight(number: int) -> float:
        line = page.lines[number].lower()
        return sum(value for pattern, value in rarity.items() if pattern.search(line))

    first = 2  # after the URL
    line = max(range(first, len(page.lines)), key=weight, default=first)
    return line, " ".join(without_links(page.lines[line : line + SNIPPET_LINES]).split())
