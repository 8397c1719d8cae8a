"""Answers that were paid for, kept by the content of what was asked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import Any

from zephyr_kit.cache import DATABASE_ERRORS, count_rows, is_damage, open_database, used
from zephyr_kit.records import DamagedError, is_sealed, sealed

ANSWER, DATABASE = "answer", "answers.sqlite"


class Answers:
    """A file of answers by question, both JSON values; many threads and processes may use it at once.

    What was put is there after the process is killed.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / DATABASE
        self._lock = Lock()
        with self._damage_told():
            self._database = open_database(self._file, one_thread=False)
            self._database.execute("CREATE TABLE IF NOT EXISTS answers (question BLOB PRIMARY KEY, answer TEXT NOT NULL) WITHOUT ROWID")
        used(self._file)

    def get(self, question: Any) -> Any:
        """The answer to a question; None if it is not known, or what was kept is not what was put."""
        with self._lock, self._damage_told():
            found = self._database.execute("SELECT answer FROM answers WHERE question = ?", [digest(question)]).fetchone()
        return None if found is None else _unsealed(found[0])

    def put(self, question: Any, answer: Any) -> None:
        """Remember an answer."""
        row = [digest(question), json.dumps(sealed({ANSWER: answer}), ensure_ascii=False)]
        with self._lock, self._damage_told():
            self._database.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", row)

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()

    @contextmanager
    def _damage_told(self) -> Iterator[None]:
        try:
            yield
        except DATABASE_ERRORS as error:
            if not is_damage(error):
                raise
            mend = "restore it, or move it elsewhere: what it kept is then asked, and paid for, again"
            raise DamagedError(f"{self._file}: damaged ({error}); {mend}") from error


def count_answers(folder: Path) -> int:
    """How many answers a file has."""
    return count_rows(folder / DATABASE, "answers")


def _unsealed(text: Any) -> Any:
    with suppress(ValueError, TypeError, AttributeError):
        kept = json.loads(text)
        if is_sealed(kept):
            return kept[ANSWER]
    return None


def digest(question: Any) -> bytes:
    """What stands for a question: the same for the same content."""
    return hashlib.blake2b(json.dumps(question, sort_keys=True).encode(), digest_size=16).digest()
