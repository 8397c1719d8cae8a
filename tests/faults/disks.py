"""Disks that are small, and can be filled."""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MIB = 2**20


@contextmanager
def small_disk(place: Path, size: int) -> Iterator[Path | None]:
    """A file system of so many bytes, at a new folder; None where none may be mounted."""
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], capture_output=True, check=False)
    if done.returncode:
        yield None
        return
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def fill(ballast: Path) -> None:
    """Let a file grow until there is no room left."""
    with ballast.open("ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(MIB))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
