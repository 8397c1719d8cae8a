"""What is in the cache, by kind: a folder for each, with an entry for each thing that is kept."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from zephyr_kit.answers import count_answers
from zephyr_kit.cache import LOCK

ABOUT = {
    "answers": "replies and judgements, which may have been paid for",
    "corpora": "tokenised data",
    "digests": "digests of files, so that each is read once",
    "references": "reference scores, by what gave them",
    "sieved": "rows that have passed filters",
    "tokenizers": "tokenizers learned from text",
}
ANSWERS = "answers"
BESIDE_A_DATABASE = ("-wal", "-shm")
"""Ends of names of files that come and go when a database is only looked at."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Something that is kept: a file, or a folder."""

    path: Path
    size: int
    """In bytes, on disk."""
    last_used: float
    """Seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class Kind:
    """All that is kept of one kind."""

    folder: Path
    entries: Sequence[Entry]

    @property
    def name(self) -> str:
        """What it is called."""
        return self.folder.name

    @property
    def about(self) -> str:
        """What it is, in words."""
        return ABOUT.get(self.name, "kept by a plugin")

    @property
    def size(self) -> int:
        """In bytes, on disk."""
        return sum(entry.size for entry in self.entries)

    def count(self) -> int:
        """How many things are kept; of answers, how many there are in their one file."""
        if self.name == ANSWERS and self.entries:
            with suppress(sqlite3.Error):  # one that cannot be read can still be cleared
                return count_answers(self.folder)
        return len(self.entries)


def kinds(root: Path) -> list[Kind]:
    """Those of which something is kept."""
    folders = sorted(folder for folder in root.iterdir() if folder.is_dir()) if root.is_dir() else []
    found = (Kind(folder, list(_entries(folder))) for folder in folders)
    return [kind for kind in found if kind.entries]


def remove(entry: Entry) -> None:
    """Remove an entry; if that is cut short, nothing is left that looks whole."""
    path = entry.path
    if path.is_dir():
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        path.rename(aside)
        shutil.rmtree(aside)
    else:
        path.unlink(missing_ok=True)


def _entries(folder: Path) -> Iterator[Entry]:
    # The answers are one file, with others beside it while it is open.
    places = [folder] if folder.name == ANSWERS else sorted(folder.iterdir())
    for place in places:
        files = [place] if place.is_file() else [file for file in place.rglob("*") if file.is_file()]
        stats = [(file, file.stat()) for file in files if file.name != LOCK]
        if files:
            times = [stat.st_mtime for file, stat in stats if not file.name.endswith(BESIDE_A_DATABASE)]
            yield Entry(place, sum(stat.st_blocks * 512 for _, stat in stats), max(times, default=place.stat().st_mtime))
