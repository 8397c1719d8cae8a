"""The files of a corpus: written, each with its checksum in the ledger, and verified when they are opened again."""

from __future__ import annotations

import itertools
import json
import math
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zephyr_kit.admission import Arrival, Door, admit
from zephyr_kit.batch import Flags, Ids, Tree
from zephyr_kit.disk import Checksum, checksum, write_hashed
from zephyr_kit.ledger import Ledger
from zephyr_kit.observe import Advance
from zephyr_kit.places import numbered
from zephyr_kit.plan import Indices
from zephyr_kit.portion import Portion
from zephyr_kit.protocols import Tokenizer
from zephyr_kit.records import DamagedError, read_sealed, sealed

LEDGER = "ledger.json"
MEND = "remove the folder it is in, and the rows are tokenised again"
BYTES_AT_ONCE = 1 << 20


def read_ledger(folder: Path) -> dict[str, Any]:
    """What became of every row, and under `files` the checksum of each file; raises `DamagedError`."""
    return read_sealed(folder / LEDGER, MEND)


def verify(folder: Path) -> None:
    """Read every byte; raises `DamagedError`, which names the file, where one is not what was written."""
    for name, written in read_ledger(folder)["files"].items():
        file = folder / name
        if not file.is_file() or file.is_symlink() or checksum(file) != Checksum(**written):
            raise DamagedError(f"{file}: damaged (does not match its checksum); {MEND}")


def write_corpus(folder: Path, portions: Sequence[Portion], tokenizer: Tokenizer, door: Door, on_rows: Advance) -> None:
    """Tokenise all rows into files; the ledger, which vouches for the others, comes last."""
    ledger, first, ends, ratings = Ledger(getattr(tokenizer, "template_digest", None)), [0], [0], array("f")
    rows = itertools.chain.from_iterable(_arrivals(portion, number, ledger) for number, portion in enumerate(portions))
    with (
        (folder / "tokens.raw").open("wb") as tokens,
        (folder / "trained.raw").open("wb") as trained,
        (folder / "origins.txt").open("w", encoding="utf-8") as origins,
        (folder / "quarantine.jsonl").open("w", encoding="utf-8") as quarantine,
        closing(admit(rows, tokenizer, door)) as entries,
    ):
        for entry in entries:
            ledger.enter(entry)
            for row in entry.admissions:
                if row.reason is not None:
                    quarantine.write(row.line())
                if row.tree is not None:
                    origins.write(row.origin.replace("\n", " ") + "\n")
                    for ids, flags in _pieces(row.tree):
                        tokens.write(ids.astype(np.int32).tobytes())
                        trained.write(flags.astype(np.bool_).tobytes())
                        ends.append(ends[-1] + len(ids))
                    ratings.extend([math.nan, *(row.tree.ratings or [math.nan] * len(row.tree.completions))])
                    first.append(len(ends) - 1)
            on_rows(ledger.read)
    _finish(folder, ledger, np.array(ratings, np.float32), np.array(first[:-1], np.int64), np.array(ends, np.int64))


def _arrivals(portion: Portion, place: int, ledger: Ledger) -> Iterator[Arrival]:
    """The rows of a portion; how many there were is noted when all have come."""
    number = -1
    for number, row in enumerate(portion.marked()):
        yield Arrival(numbered(row, place), number, portion.binarise)
    sifted = {"sieve": numbered(portion.sift().ledger, place)} if portion.filters else {}
    ledger.portions.append({"read": number + 1, **sifted})


def _pieces(tree: Tree) -> Iterable[tuple[Ids, Flags]]:
    yield tree.prompt, np.zeros(len(tree.prompt), np.bool_)
    yield from zip(tree.completions, tree.trained, strict=True)


def _finish(folder: Path, ledger: Ledger, ratings: npt.NDArray[Any], first: Indices, ends: Indices) -> None:
    """Put what has grown in memory beside the rest."""
    grown = (("ratings.npy", ratings), ("first.npy", first), ("ends.npy", ends))
    files = {name: _write_array(folder / name, values.dtype, len(values), [values.tobytes()]) for name, values in grown}
    for name, dtype in (("tokens", np.dtype(np.int32)), ("trained", np.dtype(np.bool_))):
        files[f"{name}.npy"] = _as_npy(folder / f"{name}.raw", dtype)
    for name in ("origins.txt", "quarantine.jsonl"):
        files[name] = checksum(folder / name)
    facts = {**ledger.facts(), "files": {name: asdict(each) for name, each in files.items()}}
    (folder / LEDGER).write_text(json.dumps(sealed(facts), ensure_ascii=False, indent=1), "utf-8")


def _as_npy(raw: Path, dtype: np.dtype[Any]) -> Checksum:
    """Turn raw values into an array file, without holding them in memory."""
    with raw.open("rb") as values:
        pieces = iter(partial(values.read, BYTES_AT_ONCE), b"")
        written = _write_array(raw.with_suffix(".npy"), dtype, raw.stat().st_size // dtype.itemsize, pieces)
    raw.unlink()
    return written


def _write_array(path: Path, dtype: np.dtype[Any], length: int, pieces: Iterable[bytes]) -> Checksum:
    header, description = BytesIO(), {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(header, description)
    return write_hashed(path, itertools.chain([header.getvalue()], pieces))
