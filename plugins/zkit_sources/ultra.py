"""UltraChat and UltraFeedback, raw or prepared, from the hub or from files: the path alone tells which."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from zephyr_kit import ZkitError
from zephyr_kit.config import did_you_mean
from zephyr_kit.example import Example, ExampleError, Removed
from zkit_sources.files import Files
from zkit_sources.formats import FORMATS, Format, FormatName
from zkit_sources.hub import REPOSITORY, Hub
from zkit_sources.miniature import write_rows
from zkit_sources.rated import Rated, ScoreName
from zkit_sources.schema import Answer, Record, Records, Schema
from zkit_sources.turns import Row, known_keys

SchemaName = Literal["auto", "raw", "prepared"]

FEEDBACK_SOURCES = (
    *("evol_instruct", "false_qa", "flan_v2_cot", "flan_v2_flan2021", "flan_v2_niv2", "flan_v2_p3"),
    *("sharegpt", "truthful_qa", "ultrachat"),
)
"""As UltraFeedback itself spells them: near to each other, but none a misspelling of another."""


@dataclass(frozen=True)
class Ultra:
    """What both share: where the rows are, and which of two schemas they are in."""

    path: str
    """Name of a repository of the hub, or a local file (JSON lines, JSON or Parquet), a folder or a glob of them."""
    split: str | None = None
    """The split to read, `train` unless given; of a local folder, all files unless given; a file has none."""
    revision: str | None = None
    """A commit, tag or branch of the repository; without it, what the cache holds, else the newest."""
    schema: SchemaName = "auto"
    """Whether the rows are as first published or prepared for training; `auto` tells it from their columns."""

    kind: ClassVar[str]
    raw: ClassVar[FormatName]
    prepared: ClassVar[FormatName]
    known: ClassVar[Mapping[str, FormatName]]
    """Repositories by name in small letters: when none can be reached, `--smoke` has to know what to imitate."""

    def __post_init__(self) -> None:
        if not self.path.strip():
            raise ValueError("`path` is empty")
        self._place()

    def rows(self) -> Iterator[Answer]:
        """Every row, in its order."""
        return self._schema().examples(self._records(), where=self.path)

    def fingerprint(self) -> str:
        """How rows are read, and what stands for their content."""
        parts = {"use": self.kind, "schema": self.schema, **self._options(), "rows": self._place().fingerprint()}
        return json.dumps(parts, sort_keys=True)

    def places(self) -> Sequence[str]:
        """The files, where there are some; a data set is told by its name."""
        place = self._place()
        return place.places() if isinstance(place, Files) else ()

    def problems(self) -> Sequence[str]:
        """Files or a data set out of reach, and first rows of files that cannot be understood."""
        try:
            return self._place().check(self._schema())
        except ZkitError as error:
            return [str(error)]

    def miniature(self, folder: Path) -> Self:
        """Generated rows in the same schema, read in the same way."""
        told = self._told()
        if told not in (self.raw, self.prepared):
            raise ZkitError(f'{self.path}: out of reach, so nothing tells the schema to imitate; name it: schema = "raw" or "prepared"')
        path = write_rows(folder, told, seed=f"{self.path} {self.split}")
        return replace(self, path=str(path), split=None, revision=None, schema="raw" if told == self.raw else "prepared")

    def _records(self) -> Records:
        return self._place().records()

    def _options(self) -> dict[str, Any]:
        """What else decides how a row is read."""
        shared = Ultra.__dataclass_fields__
        return {name: value for name, value in asdict(self).items() if name not in shared}

    def _formats(self) -> Mapping[str, Format]:
        return {name: FORMATS[name] for name in (self.prepared, self.raw)}

    def _schema(self) -> Schema:
        named: dict[SchemaName, FormatName] = {"auto": "auto", "raw": self.raw, "prepared": self.prepared}
        return Schema(named[self.schema], {}, self._formats())

    def _told(self) -> str:
        known = self.known.get(self.path.lower(), "") if self.schema == "auto" else ""
        return known or self._place().told(self._schema())

    def _place(self) -> Files | Hub:
        here = Path(self.path).expanduser()
        if here.is_dir() and self.split:
            self._refuse("revision", "a local folder")
            return Hub(self.path, split=self.split)
        if here.exists() or glob.has_magic(self.path) or here.name.endswith(Files.suffixes) or not REPOSITORY.fullmatch(self.path):
            self._refuse("revision", "local files")
            self._refuse("split", "local files, whose rows are all read")
            return Files(self.path)
        return Hub(self.path, split=self.split or "train", revision=self.revision)

    def _refuse(self, key: str, what: str) -> None:
        if getattr(self, key) is not None:
            raise ValueError(f'`{key}` = "{getattr(self, key)}" is for data sets of the hub, but {self.path} means {what}: leave it out')


@dataclass(frozen=True)
class UltraChat(Ultra):
    """Dialogues of GPT-3.5 with itself (arXiv 2305.14233): raw as `id` and `data`, or prepared as `messages`."""

    kind: ClassVar = "ultrachat"
    raw: ClassVar = "ultrachat"
    prepared: ClassVar = "messages"
    known: ClassVar = {"stingning/ultrachat": raw, "openbmb/ultrachat": raw, "huggingfaceh4/ultrachat_200k": prepared}


@dataclass(frozen=True)
class UltraFeedback(Ultra):
    """Prompts with completions that GPT-4 rated (arXiv 2310.01377): raw with all of them, or prepared as `chosen` and `rejected`.

    Raw rows have all their completions, in the order of the file, and need `binarise` to become pairs.
    """

    score: ScoreName = "overall"
    """What raw rows are scored by: the overall critique, the mean over the aspects that were rated, or one aspect."""
    repair: bool = True
    """Undo the known error of raw overall scores, a 1 stored as 10, where the ratings of aspects show it: 10 becomes 1 where
    their mean is at most 2, and counts as missing where it is above that and at most 4."""
    drop_sources: tuple[str, ...] = ()
    """Rows from these are left out, and counted: their prompts are in evaluation sets, such as truthful_qa."""

    kind: ClassVar = "ultrafeedback"
    raw: ClassVar = "ultrafeedback"
    prepared: ClassVar = "preference"
    known: ClassVar = {
        "openbmb/ultrafeedback": raw,
        "huggingfaceh4/ultrafeedback_binarized": prepared,
        "argilla/ultrafeedback-binarized-preferences-cleaned": prepared,
    }

    def miniature(self, folder: Path) -> Self:
        """Generated rows in the same schema, scored in the same way; they come from nowhere that could be dropped."""
        return replace(super().miniature(folder), drop_sources=())

    def _records(self) -> Records:
        """All of them; at the end, raises ZkitError for a name of `drop_sources` that is misspelt."""
        seen: set[str] = set()
        for record in super()._records():
            if isinstance(record, Record) and isinstance(source := record.values.get("source"), str):
                seen.add(source)
            yield record
        self._check_names(seen)

    def _check_names(self, seen: set[str]) -> None:
        # A name that is merely absent is fine: its rows may have been taken out before.
        for name in self.drop_sources:
            hint = "" if name in seen or name in FEEDBACK_SOURCES else did_you_mean(name, seen.difference(self.drop_sources))
            if hint:
                raise ZkitError(f'{self.path}: drop_sources = "{name}" matches no row{hint}')

    def _formats(self) -> Mapping[str, Format]:
        raw, prepared = FORMATS[self.raw], FORMATS[self.prepared]
        return {self.prepared: replace(prepared, read=self._read_prepared), self.raw: replace(raw, read=self._read_raw)}

    def _read_raw(self, row: Row) -> Example | Removed:
        return self._dropped(row) or Rated(self.score, self.repair).read(row)

    def _read_prepared(self, row: Row) -> Example | Removed:
        if self.score != "overall":
            raise ExampleError(f'score = "{self.score}" is for raw rows; this one is a pair already')
        return self._dropped(row) or FORMATS[self.prepared].read(row)

    def _dropped(self, row: Row) -> Removed | None:
        if self.drop_sources and "source" not in row:
            raise ExampleError(f"no column `source`, which drop_sources goes by; the row has {known_keys(row)}")
        source = row.get("source")
        return Removed("", by="drop_sources", reason=f"source {source}") if source in self.drop_sources else None
