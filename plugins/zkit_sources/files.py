"""Sources that read local files: JSON lines, JSON, CSV and Parquet."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from zephyr_kit import ZkitError
from zkit_sources.formats import FormatName
from zkit_sources.miniature import check_known, write_rows
from zkit_sources.paths import digest, file_problem, find_files
from zkit_sources.readers import read_csv, read_json, read_jsonl, read_parquet
from zkit_sources.schema import Answer, Records, Schema


@dataclass(frozen=True)
class LocalFiles:
    """What the sources of local files share; each adds how one file is read."""

    path: str
    """A file, a folder, or a glob such as `data/**/*.jsonl`; relative to the working directory."""
    format: FormatName = "auto"
    """How a row is understood; `auto` tells it from the columns of the first rows."""
    columns: dict[str, str] = field(default_factory=dict)
    """Columns that have another name in the file: standard name to the file's, as in { prompt = "question" }."""

    kind: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]

    def __post_init__(self) -> None:
        if not self.path.strip():
            raise ValueError("`path` is empty")
        self._schema.validate()

    def rows(self) -> Iterator[Answer]:
        """Every row of every file, in order of the files' names."""
        return self._schema.examples(self.records(), where=self.path)

    def fingerprint(self) -> str:
        """Format, columns and a digest of the files' bytes."""
        parts = {"use": self.kind, "format": self.format, "columns": self.columns, "content": digest(self._paths())}
        return json.dumps(parts, sort_keys=True)

    def places(self) -> Sequence[str]:
        """The files, which the fingerprint knows by their bytes alone."""
        return [str(path) for path in self._paths()]

    def problems(self) -> Sequence[str]:
        """Missing, empty and unreadable files, and first rows that cannot be understood."""
        return self.check(self._schema)

    def miniature(self, folder: Path) -> Jsonl:
        """Generated rows in the same format; with `auto` the file must be there to tell it."""
        known = check_known(self.told(self._schema), self.path)
        return Jsonl(str(write_rows(folder, known, seed=self.path)), format=known)

    def records(self) -> Records:
        """Every row of every file as it stands there."""
        for path in self._paths():
            yield from self._read(path)

    def check(self, schema: Schema) -> list[str]:
        """What stands in the way of reading the files by a schema."""
        try:
            found = [problem for path in self._paths() if (problem := file_problem(path))]
            return found or [problem for problem in [schema.problem(self.records(), where=self.path)] if problem]
        except ZkitError as error:
            return [str(error)]

    def told(self, schema: Schema) -> str:
        """The format that the first rows are in."""
        return schema.recognised(self.records(), where=self.path)[0]

    @property
    def _schema(self) -> Schema:
        return Schema(self.format, self.columns)

    def _paths(self) -> list[Path]:
        return find_files(self.path, self.suffixes)

    def _read(self, path: Path) -> Records:
        raise NotImplementedError


@dataclass(frozen=True)
class Jsonl(LocalFiles):
    """JSON lines, plain or gzip: one object on each line."""

    kind: ClassVar = "jsonl"
    suffixes: ClassVar = (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz")

    def _read(self, path: Path) -> Records:
        return read_jsonl(path)


@dataclass(frozen=True)
class Json(LocalFiles):
    """JSON, plain or gzip: a list of objects, or an object that holds one such list."""

    kind: ClassVar = "json"
    suffixes: ClassVar = (".json", ".json.gz")

    def _read(self, path: Path) -> Records:
        return read_json(path)


@dataclass(frozen=True)
class Csv(LocalFiles):
    """Comma-separated values, plain or gzip, in UTF-8 and under a header line."""

    kind: ClassVar = "csv"
    suffixes: ClassVar = (".csv", ".csv.gz")

    def _read(self, path: Path) -> Records:
        scores = ("score_chosen", "score_rejected")
        return read_csv(path, numbers=[self.columns.get(name, name) for name in scores])


@dataclass(frozen=True)
class Parquet(LocalFiles):
    """Parquet files."""

    kind: ClassVar = "parquet"
    suffixes: ClassVar = (".parquet",)

    def _read(self, path: Path) -> Records:
        return read_parquet(path)


@dataclass(frozen=True)
class Files(LocalFiles):
    """Files of any of the kinds that can hold lists, each told by how its name ends."""

    kind: ClassVar = "files"
    readers: ClassVar = {**dict.fromkeys(Jsonl.suffixes, read_jsonl), **dict.fromkeys(Json.suffixes, read_json), ".parquet": read_parquet}
    suffixes: ClassVar = tuple(readers)

    def _read(self, path: Path) -> Records:
        for suffix, read in self.readers.items():
            if path.name.endswith(suffix):
                return read(path)
        raise ZkitError(f"{path.absolute()}: its name does not tell what it holds; it should end in {', '.join(self.suffixes)}")
