"""Files read row by row, each row with the place where it stands; a bad row stops nothing."""

from __future__ import annotations

import csv
import gzip
import json
import re
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TextIO

from zephyr_kit import ZkitError
from zephyr_kit.example import BadRow
from zkit_sources.json_list import StructureError, list_items
from zkit_sources.schema import Record, Records
from zkit_sources.turns import describe

BAD_BYTE = re.compile("[\udc80-\udcff]")
"""How Python's `surrogateescape` keeps a byte that is not UTF-8."""

NUM_BLOCK_CHARACTERS = 1 << 20
NUM_LINE_CHARACTERS = 1 << 26
"""A longer row is none; a gzip file may unpack to one without end."""


@contextmanager
def opened(path: Path) -> Iterator[TextIO]:
    """A text file, unpacked if it is gzip; what is not UTF-8 stays as `BAD_BYTE`, a byte order mark goes."""
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            stream = gzip.GzipFile(fileobj=raw) if packed else raw
            with TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="\n") as text:
                yield text
    except (OSError, EOFError, zlib.error) as error:
        raise ZkitError(f"{path}: cannot be read to its end ({error})") from error


def read_jsonl(path: Path) -> Records:
    """JSON lines: an object on each line; blank lines are no rows."""
    with opened(path) as stream:
        for number, line in enumerate(whole_lines(stream), 1):
            if line is None:
                yield BadRow(f"{path}:{number}", f"longer than {NUM_LINE_CHARACTERS:,} characters")
            elif line.strip():
                yield parse(line.rstrip("\r\n"), f"{path}:{number}")


def whole_lines(stream: TextIO) -> Iterator[str | None]:
    """The lines of a text; None for one that is too long to hold."""
    while line := stream.readline(NUM_LINE_CHARACTERS):
        is_cut = False
        while len(line) == NUM_LINE_CHARACTERS and not line.endswith("\n"):
            line, is_cut = stream.readline(NUM_LINE_CHARACTERS), True
        yield None if is_cut else line


def read_json(path: Path) -> Records:
    """A list of objects, or an object that holds one list of them, read item by item."""
    number = 0
    try:
        with opened(path) as stream:
            for line, item in list_items(blocks(stream)):
                number += 1
                yield parse(item, f"{path}:{line} (row {number})", line=line)
    except StructureError as error:
        raise ZkitError(f"{path}: {error} (after row {number})") from error


def blocks(stream: TextIO) -> Iterator[str]:
    """Pieces of a text, none of which ends within an escape."""
    while piece := stream.read(NUM_BLOCK_CHARACTERS):
        while piece.endswith("\\") and (more := stream.read(1)):
            piece += more
        yield piece


def parse(text: str, origin: str, *, line: int | None = None) -> Record | BadRow:
    """One JSON object; `line` is where it starts, when the origin does not tell."""
    reason = not_utf8(text)
    if reason:
        return BadRow(origin, reason)
    try:
        values = json.loads(text, object_pairs_hook=distinct)
    except json.JSONDecodeError as error:
        place = f"column {error.colno}" if line is None else f"line {line + error.lineno - 1}, column {error.colno}"
        return BadRow(origin, f"not valid JSON: {error.msg} at {place}{list_hint(text, line)}")
    except (ValueError, RecursionError) as error:
        return BadRow(origin, f"not usable JSON: {str(error).partition(';')[0]}")
    if not isinstance(values, dict):
        return BadRow(origin, f"the row is {describe(values)}, not an object{list_hint(text, line)}")
    return Record(origin, values)


def distinct(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; a key that stands twice is refused, since only one value could be kept."""
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key `{twice}` stands twice in one object")
    return values


def list_hint(text: str, line: int | None) -> str:
    """A JSON list given as JSON lines is a common slip."""
    return ' (a file with one JSON list is read with use = "json")' if line is None and text.lstrip().startswith("[") else ""


def not_utf8(text: str) -> str:
    """Where a text holds a byte that is not UTF-8; empty when it holds none."""
    bad = None if text.isascii() else BAD_BYTE.search(text)
    return f"not UTF-8: byte 0x{ord(bad.group()) - 0xDC00:02x} at column {bad.start() + 1}" if bad else ""


def read_csv(path: Path, *, numbers: Collection[str] = ()) -> Records:
    """Comma-separated records under a header; each stands at the line where it starts."""
    with opened(path) as stream:
        reader = csv.reader(stream, strict=True)
        header: list[str] = []
        while True:
            origin = f"{path}:{reader.line_num + 1}"
            fields, reason = next_fields(reader)
            if reason and header:
                yield BadRow(origin, reason)
            elif fields is None and not reason:
                return
            elif not header and (fields or reason):
                header = checked_header(fields or [], origin, reason=reason)
            elif fields:
                yield csv_row(header, fields, origin, numbers=numbers)


def next_fields(reader: Iterator[list[str]]) -> tuple[list[str] | None, str]:
    """The next record, None at the end, or why there is none."""
    try:
        return next(reader, None), ""
    except csv.Error as error:
        return None, f"not valid CSV: {error}"


def checked_header(fields: list[str], origin: str, *, reason: str) -> list[str]:
    """The names of the columns; raises ZkitError when one is unreadable, empty or there twice."""
    names = [field.strip() for field in fields]
    twice = next((f"column `{name}` stands twice" for number, name in enumerate(names) if name in names[:number]), "")
    reason = reason or not_utf8("".join(names)) or ("" if all(names) else "a column has no name") or twice
    if reason:
        raise ZkitError(f"{origin}: the header cannot be used: {reason}")
    return names


def csv_row(header: list[str], fields: list[str], origin: str, *, numbers: Collection[str]) -> Record | BadRow:
    """One record; all is text but `numbers`, since CSV has no other way to write them."""
    reason = not_utf8("".join(fields))
    if len(fields) != len(header):
        reason = f"{len(fields)} fields under {len(header)} columns; a field that holds a comma needs quotes"
    if reason:
        return BadRow(origin, reason)
    return Record(origin, {name: number_or_text(field) if name in numbers else field for name, field in zip(header, fields, strict=True)})


def number_or_text(field: str) -> float | str | None:
    """A number where it is one; an empty field is none."""
    try:
        return float(field) if field.strip() else None
    except ValueError:
        return field


def read_parquet(path: Path) -> Records:
    """Rows of a Parquet file, a few hundred at a time."""
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=256):
            for values in decoded(batch):
                number += 1
                yield Record(f"{path}: row {number}", values) if isinstance(values, dict) else BadRow(f"{path}: row {number}", values)
    except (OSError, pyarrow.ArrowException) as error:
        raise ZkitError(f"{path}: not a readable Parquet file (after row {number}): {error}") from error


def decoded(batch: Any) -> Iterator[dict[str, Any] | str]:
    """Rows of an Arrow batch; where one cannot be decoded, the others still can."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for number in range(batch.num_rows):
            try:
                yield batch.slice(number, 1).to_pylist()[0]
            except UnicodeDecodeError as error:
                yield f"not UTF-8: {error.reason} in a text"
