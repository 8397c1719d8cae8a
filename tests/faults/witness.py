"""What a crash, or a loss of power, would leave at every moment of a run.

The run's own calls are heard (open, rename, remove, mkdir, fsync). Before and after each, the
folders are copied as they stand: that is what a killed process leaves. For a loss of power, what
was never forced to the disk is left out: bytes since a file's last fsync, and names since a
folder's. Databases are left out whole; what SQLite syncs is not heard.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .hits import SAVE, replace

EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
COMMITTED = "committed"
"""File with the number of checkpoints that had been put in place."""


@dataclass
class Disk:
    """What is on the disk for certain: of files, by inode, their bytes; of folders, by name, the inodes and whether they are folders."""

    files: dict[int, bytes] = field(default_factory=dict)
    folders: dict[int, dict[str, tuple[int, bool]]] = field(default_factory=dict)

    def sync(self, descriptor: int) -> None:
        stat, place = os.fstat(descriptor), _opened(descriptor)
        if place.is_dir():
            with os.scandir(place) as entries:
                self.folders[stat.st_ino] = {entry.name: (entry.inode(), entry.is_dir()) for entry in entries}
        else:
            self.files[stat.st_ino] = place.read_bytes()

    def write(self, inode: int, place: Path) -> None:
        """Write what a restarted machine would find under a folder."""
        place.mkdir(parents=True, exist_ok=True)
        for name, (each, is_folder) in self.folders.get(inode, {}).items():
            if is_folder:
                self.write(each, place / name)
            elif each in self.files:
                (place / name).write_bytes(self.files[each])
            elif ".sqlite" not in name:
                (place / name).write_bytes(b"")


@dataclass(frozen=True)
class Witness:
    """Copies what would be left, for every state that differs from the one before."""

    roots: tuple[Path, Path]
    """The run's folder and the cache's."""
    place: Path
    power: bool
    """Of power, not of the process, is the loss."""

    def __call__(self) -> None:
        disk, lock, busy = Disk(), threading.Lock(), threading.local()
        seen: set[str] = set()
        committed = 0
        sync = os.fsync

        def look() -> None:
            if getattr(busy, "now", False):
                return
            busy.now = True
            try:
                with lock:
                    self._keep(disk, seen, committed)
            finally:
                busy.now = False

        def hear(event: str, args: Any) -> None:
            named = event in EVENTS and args and isinstance(args[0], (str, os.PathLike))
            if named and self._is_ours(os.fspath(args[0])) and _writes(event, args):
                look()

        def synced(descriptor: int) -> None:
            look()
            sync(descriptor)
            if self._is_ours(str(_opened(descriptor))):
                busy.now = True
                with lock:
                    disk.sync(descriptor)
                busy.now = False
                look()

        def counted(write: Callable[..., Any]) -> Callable[..., Any]:
            def writing(*args: Any, **options: Any) -> Any:
                nonlocal committed
                found = write(*args, **options)
                committed += 1
                return found

            return writing

        for root in self.roots:
            root.mkdir(parents=True, exist_ok=True)
        os.fsync = synced
        replace(SAVE, counted)
        sys.addaudithook(hear)

    def _is_ours(self, path: str) -> bool:
        return path.startswith(tuple(map(str, self.roots)))

    def _keep(self, disk: Disk, seen: set[str], committed: int) -> None:
        staging = self.place / ".next"
        shutil.rmtree(staging, ignore_errors=True)
        for root in self.roots:
            if self.power:
                disk.write(root.stat().st_ino, staging / root.name)
            else:
                shutil.copytree(root, staging / root.name, ignore_dangling_symlinks=True)
        digest = _digest(staging)
        if digest not in seen:
            seen.add(digest)
            staging.rename(self.place / f"{len(seen):05d}")
            (self.place / f"{len(seen):05d}" / COMMITTED).write_text(str(committed))


def _opened(descriptor: int) -> Path:
    return Path(f"/proc/self/fd/{descriptor}").readlink()


def _writes(event: str, args: Any) -> bool:
    return event != "open" or bool(args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def _digest(folder: Path) -> str:
    found = hashlib.blake2b()
    for path in sorted(folder.rglob("*")):
        found.update(f"{path.relative_to(folder)}\0".encode())
        if path.is_file() and ".sqlite" not in path.name:
            found.update(path.read_bytes())
    return found.hexdigest()
