"""Where things that can be made again are kept between runs."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from zephyr_kit import ZkitError
from zephyr_kit.exits import Exit

LOCK = ".lock"
SECONDS_TO_WAIT = 60.0
"""For another process that writes to the same database."""
DATABASE_ERRORS = (sqlite3.DatabaseError, UnicodeDecodeError)
"""The second where SQLite quotes garbled names."""
SECONDS_BETWEEN_TRIES = 0.02


class CacheError(ZkitError):
    """Nothing can be kept."""

    exit = Exit.DISK


def cache_root() -> Path:
    """`ZKIT_CACHE`, or a folder of the user's cache."""
    return Path(os.environ.get("ZKIT_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zephyr-kit")


def cache_folder(name: str) -> Path:
    """The folder for things of one kind."""
    folder = cache_root() / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_be_written(folder, error.strerror) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise _cannot_be_written(folder, "it can only be read")
    return folder


def _cannot_be_written(folder: Path, reason: str | None) -> CacheError:
    return CacheError(f"{folder}: what is kept between runs cannot be written: {reason}; choose another folder with ZKIT_CACHE")


def used(file: Path) -> None:
    """Note that what this file belongs to is of use: what was not for long may be cleared."""
    with suppress(OSError):  # one that others own may be read all the same
        os.utime(file)


def open_database(file: Path, *, one_thread: bool = True) -> sqlite3.Connection:
    """A database that many processes may use at once, each statement a transaction of its own unless one is begun."""
    database = sqlite3.connect(file, timeout=SECONDS_TO_WAIT, check_same_thread=one_thread, isolation_level=None)
    until = time.monotonic() + SECONDS_TO_WAIT
    while True:
        try:
            database.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            # SQLite waits for others in every statement but this one.
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(SECONDS_BETWEEN_TRIES)
        else:
            return database


def is_damage(error: Exception) -> bool:
    """Whether it says that the file holds what was not written, and not that it is locked, or the disk full."""
    # Of a schema or a text that makes no sense, SQLite says only that there is an error, and of a wrong size, that the file is short.
    codes = (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_IOERR_SHORT_READ)
    return type(error) is sqlite3.DatabaseError or getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) in codes


def count_rows(database: Path, table: str) -> int:
    """How many rows a table of what is kept has."""
    with closing(sqlite3.connect(f"file:{database}?mode=rw", uri=True, timeout=SECONDS_TO_WAIT)) as connection:
        return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])  # noqa: S608  a name of ours


@contextmanager
def cache_in_use() -> Iterator[None]:
    """Nothing is cleared meanwhile."""
    with (cache_folder(".") / LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield


@contextmanager
def cache_at_rest() -> Iterator[None]:
    """Nobody works with what is kept meanwhile; raises `BlockingIOError` if somebody does now."""
    with (cache_folder(".") / LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
