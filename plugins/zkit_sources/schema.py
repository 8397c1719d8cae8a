"""From rows of any format to examples: renaming, recognising the format, telling what is wrong."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Any, get_args

from zephyr_kit import ZkitError
from zephyr_kit.example import BadRow, Example, ExampleError, Removed
from zkit_sources.formats import FORMATS, Format, FormatName
from zkit_sources.turns import MissingColumnError, known_keys

NUM_HEAD_ROWS = 20
"""How many good rows may pass before one must tell the format."""

OTHER_NAMES = {
    "question": "prompt",
    "query": "prompt",
    "answer": "completion",
    "dialog": "messages",
    "dialogue": "messages",
    "conversation": "messages",
    "context": "input",
    "content": "text",
}
"""What others call the columns, for suggestions only."""


@dataclass(frozen=True, slots=True)
class Record:
    """A row as it was read, and where."""

    origin: str
    values: Mapping[str, Any]


Records = Iterator[Record | BadRow]
Answer = Example | BadRow | Removed
"""What becomes of a record."""


@dataclass(frozen=True, slots=True)
class Schema:
    """How a source's rows are to be understood."""

    format: FormatName
    columns: Mapping[str, str]
    formats: Mapping[str, Format] = field(default_factory=lambda: FORMATS)
    """Those that are looked for, and how they are read."""

    def validate(self) -> None:
        """Refuse an unknown format and columns that it does not have; raises ValueError."""
        names = get_args(FormatName)
        if self.format not in names:
            raise ValueError(f"`format` = {self.format!r} is unknown{near(self.format, names)} (known: {', '.join(names)})")
        known = sorted(known_columns() if self.format == "auto" else self.formats[self.format].columns())
        for name, actual in self.columns.items():
            if name not in known:
                swapped = f"; the standard name comes first: {actual} = \"{name}\"" if actual in known else near(name, known)
                raise ValueError(f"`columns` does not know `{name}`{swapped} (format {self.format} has {', '.join(known) or 'none'})")

    def examples(self, records: Iterable[Record | BadRow], *, where: str) -> Iterator[Answer]:
        """Every record as an example, or why it is none; raises ZkitError when no format fits."""
        records = iter(records)
        name, head = self.recognised(records, where=where)
        for record in chain(head, records):
            yield self.example(record, name)

    def recognised(self, records: Records, *, where: str) -> tuple[str, list[Record | BadRow]]:
        """The format, empty when no row is good, and the records that were read to tell."""
        head: list[Record | BadRow] = []
        if self.format != "auto":
            return self.format, head
        num_good = 0
        for record in records:
            head.append(record)
            if isinstance(record, Record):
                name = self.recognise(self.rename(record.values))
                if name:
                    return name, head
                num_good += 1
                if num_good == NUM_HEAD_ROWS:
                    break
        if num_good:
            raise ZkitError(self.unrecognised(head, where))
        return "", head

    def recognise(self, columns: Collection[str]) -> str | None:
        """The first format that these columns fit."""
        return next((name for name, layout in self.formats.items() if layout.fits(columns)), None)

    def problem(self, records: Records, *, where: str) -> str:
        """What the first rows already tell to be wrong; empty when nothing."""
        head = list(islice(records, NUM_HEAD_ROWS))
        good = [record for record in head if isinstance(record, Record)]
        if not head:
            return f"{where}: it has no rows"
        if not good and isinstance(head[0], BadRow):
            return f"{where}: none of the first {len(head)} rows can be read; {head[0].origin}: {head[0].reason}"
        name, _ = self.recognised(iter(head), where=where)
        reasons = [answer.reason for record in good if isinstance(answer := self.example(record, name), BadRow)]
        if len(reasons) == len(good):
            return f"{where}: none of the first {len(head)} rows is in format {name}; {good[0].origin}: {reasons[0]}"
        return ""

    def example(self, record: Record | BadRow, name: str) -> Answer:
        """One record, read in the format of that name."""
        if isinstance(record, BadRow):
            return record
        try:
            return replace(self.formats[name].read(self.rename(record.values)), origin=record.origin)
        except MissingColumnError as error:
            return BadRow(record.origin, self.missing(error, record.values))
        except ExampleError as error:
            return BadRow(record.origin, str(error))

    def rename(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """The row under the standard names; a column that was renamed leaves its old name."""
        if not self.columns:
            return values
        taken = {*self.columns, *self.columns.values()}
        kept = {name: value for name, value in values.items() if name not in taken}
        return kept | {name: values[actual] for name, actual in self.columns.items() if actual in values}

    def missing(self, error: MissingColumnError, values: Mapping[str, Any]) -> str:
        """Name the column as the file should have it, and those that it has."""
        names = [self.columns.get(name, name) for name in error.names]
        meant = "".join(f" (for `{name}`)" for name in error.names if name in self.columns)
        close = next((near for name in names for near in difflib.get_close_matches(name, list(values), n=1)), "")
        hint = f"; did you mean `{close}`?" if meant and close else f"; `{close}` may be it" if close else ""
        return f"no column {' or '.join(f'`{name}`' for name in names)}{meant}; the row has {known_keys(values) or 'none'}{hint}"

    def unrecognised(self, head: Iterable[Record | BadRow], where: str) -> str:
        """No format fits: the columns found, the formats known, and how to name columns."""
        found = list(dict.fromkeys(name for record in head if isinstance(record, Record) for name in record.values))
        absent = [actual for actual in self.columns.values() if actual not in found]
        lost = [f"`columns` names `{actual}`, which no row has{near(actual, found)}" for actual in absent]
        hint = suggest([name for name in found if name not in self.columns.values()])
        return "\n  ".join(
            [
                f"{where}: its rows are in no known format",
                f"columns found: {', '.join(found) or 'none'}",
                *lost,
                f"formats known: {'; '.join(f'{name} ({layout})' for name, layout in self.formats.items())}",
                hint or 'if its columns have other names, name them: columns = { prompt = "yours", completion = "yours" }',
            ]
        )


def known_columns() -> set[str]:
    """Every standard column."""
    return {name for layout in FORMATS.values() for name in layout.columns()}


def suggest(found: Collection[str]) -> str:
    """Standard names for columns that look like them."""
    if "label" in found and FORMATS["prompt_completion"].fits([name for name in found if name != "label"]):
        return (
            'a `label` tells good completions from bad ones: write format = "labelled" for an objective that learns from both, '
            'or format = "prompt_completion" to learn all of them'
        )
    if "prompt" in found:
        return 'to read a prompt alone, which is to be answered and not learnt, write format = "prompt"'
    pairs: dict[str, str] = {}
    for name in found:
        close = difflib.get_close_matches(name.lower(), known_columns(), n=1, cutoff=0.75) or [OTHER_NAMES.get(name.lower(), "")]
        if close[0] and close[0] != name and close[0] not in found:
            pairs.setdefault(close[0], name)
    listed = ", ".join(f"`{standard}` for `{name}`" for standard, name in pairs.items())
    table = ", ".join(f'{standard} = "{name}"' for standard, name in pairs.items())
    return f"did you mean {listed}? write columns = {{ {table} }}" if pairs else ""


def near(name: str, options: Collection[str]) -> str:
    """A suggestion for a misspelt name; empty when nothing is close."""
    close = difflib.get_close_matches(name, list(options), n=1)
    return f"; did you mean `{close[0]}`?" if close else ""
