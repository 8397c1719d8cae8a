"""Where rows stand, apart from what they hold.

What is kept of rows is found by their content, and files of one content share it. There a row has a mark in place of the file that
it is in, by number, and whoever tells of it says where this run has that file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

from zephyr_kit import ZkitError
from zephyr_kit.example import BadRow, Example, Removed

OPEN, CLOSE = "\x02", "\x03"
"""About a mark: characters that texts do not hold."""
MARK = re.compile(f"{OPEN}([0-9.]+){CLOSE}")

RowType = TypeVar("RowType", bound=Example | BadRow | Removed)


@dataclass(frozen=True)
class Places:
    """The files of this run, by their marks."""

    names: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, source: Any) -> Places:
        """Those of a data source; of one that tells of none, origins are kept as they are."""
        tell = getattr(source, "places", tuple)
        return cls({str(number): place for number, place in enumerate(tell())})

    @classmethod
    def joined(cls, parts: list[Places]) -> Places:
        """Those of several sources, as `numbered` marks them."""
        return cls({f"{number}.{mark}": name for number, part in enumerate(parts) for mark, name in part.names.items()})

    def marked(self, row: RowType) -> RowType:
        """A row with the mark of its file."""
        place, _, rest = row.origin.rpartition(":")
        mark = self._marks.get(place)
        return row if mark is None else replace(row, origin=f"{OPEN}{mark}{CLOSE}:{rest}")

    def told(self, value: Any) -> Any:
        """JSON values, or a row, with names in the place of marks."""
        return _with_texts(value, lambda text: MARK.sub(self._name, text) if OPEN in text else text)

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Errors raised within name files, not marks."""
        try:
            yield
        except ZkitError as error:
            error.args = tuple(self.told(list(error.args)))
            raise

    @cached_property
    def _marks(self) -> dict[str, str]:
        return {name: mark for mark, name in self.names.items()}

    def _name(self, mark: re.Match[str]) -> str:
        name = self.names.get(mark[1])
        return mark[0] if name is None else printable(name).replace("\n", " ")


def numbered(value: Any, number: int) -> Any:
    """JSON values, or a row, whose marks are those of one source, with marks that hold for several."""
    return _with_texts(value, lambda text: MARK.sub(f"{OPEN}{number}.\\1{CLOSE}", text) if OPEN in text else text)


def printable(text: str) -> str:
    """A name of a file, or a key of a row that a reason quotes, may hold what no file can."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def _with_texts(value: Any, change: Callable[[str], str]) -> Any:
    """The texts changed; of a row, those that say where it stands and what became of it, not what it holds."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Example):
        return replace(value, origin=change(value.origin))
    if isinstance(value, BadRow | Removed):
        return replace(value, origin=change(value.origin), reason=change(value.reason))
    if isinstance(value, Mapping):
        return {_with_texts(key, change): _with_texts(each, change) for key, each in value.items()}
    return [_with_texts(each, change) for each in value] if isinstance(value, list | tuple) else value
