"""Scores of completions, kept by the content of what scored them and of what was scored.

    KEY/scorer.json      what the scores depend on besides the tokens, to be read
    KEY/scores.sqlite    a row for each completion: a value for each trained token, and a checksum
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from zephyr_kit.cache import DATABASE_ERRORS, count_rows, is_damage, open_database, used

FORMAT = 1
"""Part of every key: scores of another format are computed anew."""
SCORER, DATABASE = "scorer.json", "scores.sqlite"

Kept = tuple[str, bytes]
"""Type of the values, as numpy writes it, and the values."""
Result = TypeVar("Result")


class ScoreStore:
    """The scores that one scorer gave; many processes may use it at once.

    `scorer` are JSON values that change whenever the scores would; `about` says for the
    reader where they come from. What was put is there after the process is killed.
    """

    def __init__(self, cache: Path, scorer: Mapping[str, Any], about: str) -> None:
        content = json.dumps([FORMAT, scorer], sort_keys=True)
        self.folder = cache / hashlib.blake2b(content.encode(), digest_size=16).hexdigest()
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / SCORER).exists():
            staging = self.folder / f".{SCORER}.{os.getpid()}"
            staging.write_text(json.dumps({"scorer": scorer, "about": about}, indent=1, ensure_ascii=False), "utf-8")
            staging.rename(self.folder / SCORER)
        self._database = self._sound(self._open)
        used(self.folder / DATABASE)

    def known(self, keys: Iterable[bytes]) -> dict[bytes, Kept]:
        """The scores of those completions that are known; damaged ones are not."""
        return self._sound(lambda: self._known(keys))

    def put(self, scores: Mapping[bytes, Kept]) -> None:
        """Remember scores, all of them or none."""
        rows = [(key, dtype, values, _checksum(key, (dtype, values))) for key, (dtype, values) in scores.items()]
        self._sound(lambda: self._put(rows))

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()

    def _known(self, keys: Iterable[bytes]) -> dict[bytes, Kept]:
        found: dict[bytes, Kept] = {}
        # One transaction, so that the file is locked once and not for each key.
        self._database.execute("BEGIN")
        try:
            for key in keys:
                row = self._database.execute("SELECT dtype, logp, checksum FROM scores WHERE completion = ?", [key]).fetchone()
                if row is not None and tuple(map(type, row)) == (str, bytes, int) and _checksum(key, row[:2]) == row[2]:
                    found[key] = row[:2]
        finally:
            self._end()
        return found

    def _put(self, rows: list[tuple[bytes, str, bytes, int]]) -> None:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            self._database.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?)", rows)
            self._database.execute("COMMIT")
        except BaseException:
            self._end()
            raise

    def _end(self) -> None:
        """Undo what is under way, unless SQLite has done so itself, as on a full disk."""
        if self._database.in_transaction:
            self._database.execute("ROLLBACK")

    def _open(self) -> sqlite3.Connection:
        database = open_database(self.folder / DATABASE)
        # A process that is killed loses nothing so; a machine that fails, its last moments.
        database.execute("PRAGMA synchronous = NORMAL")
        columns = "completion BLOB PRIMARY KEY, dtype TEXT NOT NULL, logp BLOB NOT NULL, checksum INTEGER NOT NULL"
        database.execute(f"CREATE TABLE IF NOT EXISTS scores ({columns})")
        return database

    def _sound(self, work: Callable[[], Result]) -> Result:
        """Do some work; begin with an empty file when this one can no longer be read."""
        try:
            return work()
        except DATABASE_ERRORS as error:
            if not is_damage(error):
                raise
            for name in (DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm"):
                (self.folder / name).unlink(missing_ok=True)
            self._database = self._open()
            return work()


def count_scores(folder: Path) -> int:
    """How many completions a store has scores of."""
    return count_rows(folder / DATABASE, "scores")


def _checksum(key: bytes, kept: Kept) -> int:
    dtype, values = kept
    return zlib.crc32(values, zlib.crc32(dtype.encode(), zlib.crc32(key)))
