"""Texts that stand for the content of files."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from pathlib import Path

from zephyr_kit.cache import cache_folder, used


def file_fingerprint(path: Path) -> str:
    """Digest of a file's bytes; remembered as long as its size, times and place stay: an edit may set one time back, not the other."""
    stat = path.stat()
    known = [str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
    note = cache_folder("digests") / hashlib.blake2b(json.dumps(known).encode(), digest_size=16).hexdigest()
    if note.exists():
        noted = note.read_text("ascii", "replace")
        digest = noted[:64]
        if noted == _vouched(note.name, digest):  # after a loss of power, it may be empty
            used(note)
            return digest
    digest = file_digest(path)
    staging = note.with_name(f".{note.name}.{os.getpid()}")
    staging.write_text(_vouched(note.name, digest), "ascii")
    staging.rename(note)
    return digest


def folder_fingerprint(folder: Path, endings: tuple[str, ...] = ("",)) -> dict[str, str]:
    """Digest of each file of a folder, not of folders in it, whose name ends so."""
    return {path.name: file_fingerprint(path) for path in files_ending(folder, endings)}


def file_digest(path: Path) -> str:
    """Digest of a file's bytes, all of which are read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_ending(folder: Path, endings: tuple[str, ...]) -> list[Path]:
    """Files of a folder, not of folders in it, whose name ends so."""
    return [path for path in sorted(folder.iterdir()) if path.is_file() and path.name.endswith(endings)]


def _vouched(name: str, digest: str) -> str:
    """A note of this name: a bit of it that flips must not make a file look changed."""
    return f"{digest} {zlib.crc32(f'{name} {digest}'.encode()):08x}"
