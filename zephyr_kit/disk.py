"""What reaches the disk, in which order; and what is said when it cannot."""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import shutil
import sqlite3
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from zephyr_kit import ZkitError
from zephyr_kit.cache import cache_root
from zephyr_kit.exits import Exit

TROUBLES = {
    errno.ENOSPC: "disk full",
    errno.EDQUOT: "disk full: the user's quota is used up",
    errno.EFBIG: "file too large for this file system, or this user",
    errno.EROFS: "the file system can only be read",
    errno.EIO: "the disk reports an error",
    errno.ESTALE: "the file system has lost a file (a network drive that went away?)",
    errno.EMFILE: "too many files are open in this process (see ulimit -n)",
    errno.ENFILE: "too many files are open on this machine",
}
BY_TEXT = {os.strerror(number).lower(): words for number, words in TROUBLES.items()} | {
    "database or disk is full": TROUBLES[errno.ENOSPC],
    "disk i/o error": TROUBLES[errno.EIO],
    "unable to open database file": TROUBLES[errno.EMFILE],
}
"""Libraries pass the system's text on, and seldom its number."""


class DiskError(ZkitError):
    """The disk is full, or does not answer."""

    exit = Exit.DISK


@dataclass(frozen=True, slots=True)
class Checksum:
    """Of a file's content."""

    size: int
    blake2b: str


def write_hashed(path: Path, pieces: Iterable[bytes | memoryview]) -> Checksum:
    """Write a file, hashing it on the way; it is on the disk when this returns."""
    digest, size = hashlib.blake2b(), 0
    with path.open("wb", buffering=0) as file:
        for piece in pieces:
            view = memoryview(piece).cast("B")
            digest.update(view)
            size += len(view)
            while view:
                view = view[file.write(view) or 0 :]
        os.fsync(file.fileno())
    return Checksum(size, digest.hexdigest())


def checksum(path: Path) -> Checksum:
    """Of a file as it stands."""
    refuse_special(path)
    with path.open("rb") as file:
        return Checksum(path.stat().st_size, hashlib.file_digest(file, "blake2b").hexdigest())


def refuse_special(path: Path) -> None:
    """Raise `OSError` for what is no file itself: a link may lead anywhere, and who reads a pipe waits for ever."""
    if not stat.S_ISREG(path.lstat().st_mode):
        raise OSError(f"{path.name} is a link, or no file")


def sync(path: Path) -> None:
    """Force a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def let_others_read(folder: Path) -> None:
    """Give every file of a model the mode of its card: safetensors writes files that only their owner can read."""
    mode = (folder / "README.md").stat().st_mode
    for file in folder.iterdir():
        file.chmod(mode)


def put(staging: Path, place: Path) -> None:
    """Rename a folder, or a file, to its place, with all its content on the disk before, and the new name after."""
    for path in (*(staging.rglob("*") if staging.is_dir() else ()), staging):
        sync(path)
    staging.rename(place)
    sync(place.parent)


def staging_folder(folder: Path) -> Path:
    """An empty folder to work in; those that killed processes left for the same folder are removed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = staging_place(folder)
    staging.mkdir()
    return staging


def staging_place(place: Path) -> Path:
    """Beside it, where nothing is; what killed processes left there for the same file or folder is removed."""
    mine = f".{place.name}.{platform.node()}."
    for left in place.parent.iterdir():
        owner = left.name.removeprefix(mine)
        if left.name.startswith(mine) and (int(owner) == os.getpid() or not _is_alive(int(owner))):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)
    return place.with_name(f"{mine}{os.getpid()}")


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def disk_errors_told(folder: Path) -> Iterator[None]:
    """Say in a line that the disk is full, or does not answer; what was saved before stands."""
    try:
        yield
    except (OSError, SafetensorError, sqlite3.Error) as error:
        words = _words(error)
        if words is None:
            raise
        raise DiskError(
            f"{words}: {error} ({_free(folder)}); what was saved before stands, and the same command goes on when that is mended"
        ) from error


def _words(error: Exception) -> str | None:
    number = getattr(error, "errno", None)
    if number in TROUBLES:
        return TROUBLES[number]
    text = str(error).lower()
    return next((words for told, words in BY_TEXT.items() if told in text), None)


def _free(folder: Path) -> str:
    """What is written goes to either, and an error of the disk seldom says which."""
    told = []
    for place in (folder, cache_root()):
        try:
            told.append(f"{place} has {shutil.disk_usage(place).free / 2**20:,.0f} MiB free")
        except OSError as error:
            told.append(f"{place}: {error.strerror}")
    return " and ".join(told)
