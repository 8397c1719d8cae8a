"""Where examples come from, and what they pass on their way into a corpus."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from zephyr_kit.example import BadRow, Example, Removed

INLINE = "inline"
"""Marks the field, in its metadata, whose table is written among the keys of the one it is in."""


class DataSource(Protocol):
    """Rows to learn from: the same ones, in the same order, each time they are read.

    What is kept of them is found by the fingerprint. Where that does not tell of the files, since others may hold the same, a
    method `places() -> Sequence[str]` does: they stand in an order that goes with the fingerprint, and the origin of a row is one
    of them, a colon, and where in it.
    """

    def rows(self) -> Iterator[Example | BadRow | Removed]:
        """Every row, in order: one that cannot be understood comes as a `BadRow`, one that it takes out on purpose as `Removed`."""
        ...

    def fingerprint(self) -> str:
        """A text that changes whenever the rows would."""
        ...

    def problems(self) -> Sequence[str]:
        """What stands in the way of reading it, found within three seconds; empty if nothing."""
        ...

    def miniature(self, folder: Path) -> DataSource:
        """A small offline source of the same schema, with generated rows, for `--smoke`."""
        ...


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a filter makes of an example."""

    example: Example | None
    """As it goes on, changed or not; None when it is removed."""
    reason: str = ""
    """Why it was removed, or what was changed, in words that can be counted, particulars in brackets at the end; empty when it is left."""
    trace: bytes = b""
    """What the filter's memory needs to know of it."""


class Memory(Protocol):
    """What a filter remembers of the rows that came before; on disk, so that it may be large and is resumed."""

    def meet(self, row: int, trace: bytes, origin: str) -> str:
        """Why row number `row` is to be removed, for what came before it; empty when it stays, and is remembered.

        An origin is to be quoted as it is: it has a mark for the file, in the place of which users are told its name.
        """
        ...

    def keep(self) -> None:
        """Make what was met so far last."""
        ...


class Filter(Protocol):
    """Looks at examples one by one, and changes, removes or leaves each. Picklable: it works in other processes."""

    def look(self, example: Example) -> Verdict:
        """A function of the example alone."""
        ...

    def memory(self, folder: Path, *, first: int) -> AbstractContextManager[Memory] | None:
        """What it remembers in `folder`, less all of row number `first` and later; None if it needs no memory."""
        ...

    def fingerprint(self) -> str:
        """A text that changes whenever what it does would."""
        ...

    def problems(self) -> Sequence[str]:
        """What stands in the way, found within three seconds; empty if nothing."""
        ...

    def miniature(self, folder: Path) -> Filter:
        """The same without anything that must be fetched, for `--smoke`."""
        ...
