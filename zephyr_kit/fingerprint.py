"""Texts that stand for the content of files."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path

from zephyr_kit.cache import cache_folder, used

DIGEST = re.compile("[0-9a-f]{64}")


def file_fingerprint(path: Path) -> str:
    """Digest of a file's bytes; remembered as long as its size, times and place stay: an edit may set one time back, not the other."""
    stat = path.stat()
    known = [str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
    note = cache_folder("digests") / hashlib.blake2b(json.dumps(known).encode(), digest_size=16).hexdigest()
    if note.exists() and DIGEST.fullmatch(digest := note.read_text("ascii", "replace")):  # after a loss of power, it may be empty
        used(note)
        return digest
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    staging = note.with_name(f".{note.name}.{os.getpid()}")
    staging.write_text(digest, "ascii")
    staging.rename(note)
    return digest


def folder_fingerprint(folder: Path, endings: tuple[str, ...] = ("",)) -> dict[str, str]:
    """Digest of each file of a folder, not of folders in it, whose name ends so."""
    return {path.name: file_fingerprint(path) for path in sorted(folder.iterdir()) if path.is_file() and path.name.endswith(endings)}
