"""Answers that were paid for, kept by the content of what was asked."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from threading import Lock
from typing import Any

from zephyr_kit.cache import count_rows, open_database, used

DATABASE = "answers.sqlite"


class Answers:
    """A file of answers by question, both JSON values; many threads and processes may use it at once.

    What was put is there after the process is killed.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = Lock()
        self._database = open_database(folder / DATABASE, one_thread=False)
        self._database.execute("CREATE TABLE IF NOT EXISTS answers (question BLOB PRIMARY KEY, answer TEXT NOT NULL) WITHOUT ROWID")
        used(folder / DATABASE)

    def get(self, question: Any) -> Any:
        """The answer to a question; None if it is not known."""
        with self._lock:
            found = self._database.execute("SELECT answer FROM answers WHERE question = ?", [digest(question)]).fetchone()
        return None if found is None else json.loads(found[0])

    def put(self, question: Any, answer: Any) -> None:
        """Remember an answer."""
        row = [digest(question), json.dumps(answer, ensure_ascii=False)]
        with self._lock:
            self._database.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", row)

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()


def count_answers(folder: Path) -> int:
    """How many answers a file has."""
    return count_rows(folder / DATABASE, "answers")


def digest(question: Any) -> bytes:
    """What stands for a question: the same for the same content."""
    return hashlib.blake2b(json.dumps(question, sort_keys=True).encode(), digest_size=16).digest()
