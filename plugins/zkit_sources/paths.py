"""Which files a path means, what is wrong with them, and a digest of what they hold."""

from __future__ import annotations

import difflib
import glob
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from zephyr_kit import ZkitError
from zephyr_kit.fingerprint import file_fingerprint


def find_files(path: str, suffixes: Sequence[str]) -> list[Path]:
    """A file, the files of a folder with these suffixes, or those of a glob, sorted; raises ZkitError when there are none."""
    given = Path(path).expanduser()
    if given.is_dir():
        found = sorted(file for file in given.iterdir() if file.name.endswith(tuple(suffixes)) and not file.name.startswith("."))
        if not found:
            wanted = " or ".join(f"*{suffix}" for suffix in suffixes)
            raise ZkitError(f"{given.absolute()}: the folder holds no {wanted} file{others(given)}")
        return found
    if given.exists():
        return [given]
    if not glob.has_magic(path):
        raise ZkitError(f"{given.absolute()}: no such file or folder{nearest(given)}")
    matching = sorted(Path(file) for file in glob.glob(str(given), recursive=True) if Path(file).is_file())  # noqa: PTH207 - Path.glob refuses absolute patterns
    if not matching:
        raise ZkitError(f"{given.absolute()}: no file matches")
    return matching


def others(folder: Path) -> str:
    """What a folder holds instead, for a message."""
    names = sorted(file.name for file in folder.iterdir())
    below = any(file.is_dir() for file in folder.iterdir())
    listed = f" (it holds {', '.join(names[:5])}{', …' if len(names) > 5 else ''})" if names else " (it is empty)"
    return listed + (f"; folders in it are searched only by a glob: {folder / '**' / '*'}" if below else "")


def nearest(path: Path) -> str:
    """The file or folder that may have been meant."""
    missing = path.absolute()
    while not missing.parent.is_dir():
        missing = missing.parent
    names = sorted(file.name for file in missing.parent.iterdir())
    close = difflib.get_close_matches(missing.name, names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {missing.parent / close[0]}?"
    return "" if missing == path.absolute() else f"; {missing.parent} has no {missing.name}"


def file_problem(path: Path) -> str:
    """Why a file cannot be read; empty when it can."""
    if not path.is_file():
        return f"{path.absolute()}: not a regular file"
    try:
        with path.open("rb") as stream:
            start = stream.read(2)
    except OSError as error:
        return f"{path.absolute()}: cannot be read: {error.strerror or error}"
    if start in (b"\xff\xfe", b"\xfe\xff"):
        return f"{path.absolute()}: it is UTF-16; save it as UTF-8"
    return "" if start else f"{path.absolute()}: it is empty"


def digest(paths: Iterable[Path]) -> str:
    """A digest of the contents of files, in order; their names do not count."""
    whole = hashlib.blake2b(digest_size=20)
    for path in paths:
        try:
            whole.update(file_fingerprint(path).encode())
        except OSError as error:
            raise ZkitError(f"{path.absolute()}: cannot be read: {error.strerror or error}") from error
    return whole.hexdigest()
