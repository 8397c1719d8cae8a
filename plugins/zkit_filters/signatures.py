"""Signatures of the dialogues that were kept, on disk, found again by any of their bands."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from zephyr_kit import ZkitError
from zkit_filters.shingles import shingles

Signature = npt.NDArray[np.uint32]

REASON = "near-duplicate of an earlier row"
KIBIBYTES_OF_CACHE = 128 * 1024
KEPT = 1
"""SQLite's `user_version` of a file in which something was made to last."""

SCHEMA = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = FULL;
CREATE TABLE IF NOT EXISTS signatures (row INTEGER PRIMARY KEY, signature BLOB NOT NULL, origin TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS bands (band INTEGER NOT NULL, row INTEGER NOT NULL, PRIMARY KEY (band, row)) WITHOUT ROWID;
"""


class Signatures:
    """The memory of `near_duplicates`: the file `signatures.sqlite` in its folder, of which little is held in memory."""

    def __init__(self, folder: Path, threshold: float, *, num_bands: int, band_size: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._threshold = threshold
        self._num_bands, self._band_size = num_bands, band_size
        self._path = folder / "signatures.sqlite"
        self._database = sqlite3.connect(self._path, isolation_level=None)
        self._database.executescript(f"PRAGMA cache_size = -{KIBIBYTES_OF_CACHE};{SCHEMA}")
        self._database.execute("BEGIN")

    def meet(self, row: int, trace: bytes, origin: str) -> str:
        """Whether the dialogue nearly repeats one that was kept; it is kept, and remembered, unless it does."""
        if not trace:
            return ""
        bands = self._bands(trace)
        known = self._known(bands, np.frombuffer(trace, "<u4"))
        if known is not None:
            return f"{REASON} ({known})"
        self._database.execute("INSERT INTO signatures VALUES (?, ?, ?)", [row, trace, origin])
        self._database.executemany("INSERT INTO bands VALUES (?, ?)", [(band, row) for band in bands])
        return ""

    def forget(self, first: int) -> None:
        """Leave nothing of row number `first` and later; raises ZkitError if what came before it is not there."""
        (version,) = self._database.execute("PRAGMA user_version").fetchone()
        if first and version != KEPT:
            told = f"what it knew of the {first:,} rows that were sifted before is gone"
            raise ZkitError(f"{self._path}: {told}; remove {self._path.parents[2]}, and they are sifted again")
        later = self._database.execute("SELECT row, signature FROM signatures WHERE row >= ?", [first])
        pairs: Iterable[tuple[int, int]] = ((band, row) for row, trace in later for band in self._bands(trace))
        self._database.executemany("DELETE FROM bands WHERE band = ? AND row = ?", list(pairs))
        self._database.execute("DELETE FROM signatures WHERE row >= ?", [first])

    def keep(self) -> None:
        """Commit: what was met so far lasts, even if the power fails."""
        self._database.execute(f"PRAGMA user_version = {KEPT}")
        self._database.execute("COMMIT")
        self._database.execute("BEGIN")

    def close(self) -> None:
        """Let go of the file; what was not kept is forgotten."""
        self._database.close()

    def _known(self, bands: list[int], signature: Signature) -> str | None:
        """Where a row stands that has a band in common and enough equal places: their share estimates the similarity."""
        marks = ", ".join("?" * len(bands))
        rows = self._database.execute(f"SELECT DISTINCT row FROM bands WHERE band IN ({marks})", bands)  # noqa: S608  marks only
        for (row,) in rows.fetchall():
            trace, origin = self._database.execute("SELECT signature, origin FROM signatures WHERE row = ?", [row]).fetchone()
            if np.mean(np.frombuffer(trace, "<u4") == signature) >= self._threshold:
                return str(origin)
        return None

    def _bands(self, trace: bytes) -> list[int]:
        """A 63-bit key for each band of a signature, its number mixed in."""
        values = np.frombuffer(trace, "<u4").astype(np.uint64)[: self._num_bands * self._band_size]
        contents = shingles(values, self._band_size)[:: self._band_size]
        numbered = np.stack([np.arange(len(contents), dtype=np.uint64), contents], axis=1)
        keys: list[int] = (shingles(numbered.ravel(), 2)[::2] >> np.uint64(1)).tolist()
        return keys
