"""How much of a data source to take, and what its rows pass on their way."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Gt, Interval

from zephyr_kit import ZkitError
from zephyr_kit.binarise import Binarise
from zephyr_kit.cache import cache_folder
from zephyr_kit.fingerprint import file_fingerprint
from zephyr_kit.places import Places
from zephyr_kit.protocols import INLINE, DataSource, Filter
from zephyr_kit.sieve import Row, Sieve, Sifted, class_name

MAX_BYTES_COUNTED = 64 * 2**20
"""Of files whose rows are counted only to be told of."""
MAX_DESCRIPTION = 300
"""Characters."""


@dataclass(frozen=True, slots=True)
class Portion:
    """A data source, and how much of it to take; the other keys of its table are the source's own."""

    source: DataSource = field(metadata={INLINE: True})
    fraction: Annotated[float, Interval(gt=0, le=1)] = 1.0
    """The share of rows to take, drawn at random."""
    limit: Annotated[int, Gt(0)] | None = None
    """At most so many rows."""
    draw: Annotated[int, Interval(ge=0, lt=2**63)] = 0
    """Seed of the random draw."""
    filters: tuple[Filter, ...] = ()
    """What the rows taken pass, in this order."""
    binarise: Binarise | None = None
    """How the scored completions of a row that has passed become pairs, or a ranking."""

    def rows(self) -> Iterator[Row]:
        """The rows taken, in the source's order, as the filters leave them; not yet binarised."""
        return map(self.places.told, self.sift().rows()) if self.filters else self._taken()

    def marked(self) -> Iterator[Row]:
        """The same, each with the mark of the file that it is in."""
        return self.sift().rows() if self.filters else map(self.places.marked, self._taken())

    def sift(self, *, on_rows: Callable[[int], None] | None = None) -> Sifted:
        """Let the rows pass the filters, unless they have done so before; what comes of it has marks."""
        return Sieve(self._taken, self._key(), self.filters, self.places).sift(cache_folder("sieved"), on_rows=on_rows)

    @property
    def places(self) -> Places:
        """The files that the rows are in."""
        return Places.of(self.source)

    def files(self) -> dict[str, str]:
        """The files that the rows are in, each with a digest of its bytes."""
        there = (Path(name) for name in self.places.names.values())
        return {str(file): file_fingerprint(file) for file in there if file.is_file()}

    def num_rows(self) -> int | None:
        """How many rows are taken; None where to count them would take long, or cannot be done."""
        files = self.files()
        with suppress(ZkitError, OSError):
            if files and sum(Path(file).stat().st_size for file in files) <= MAX_BYTES_COUNTED:
                return sum(1 for _ in self._taken())
        return None

    def fingerprint(self) -> list[Any]:
        """JSON values that change whenever what comes of the rows would."""
        return [*self._key(), self._rule()]

    def facts(self) -> dict[str, Any]:
        """Where its rows come from, in JSON values."""
        return {"source": _told(self.source), "fraction": self.fraction, "limit": self.limit, "draw": self.draw, "binarise": self._rule()}

    def _key(self) -> list[Any]:
        draw = self.draw if self.fraction < 1 else None
        return [self.source.fingerprint(), self.fraction, self.limit, draw, [each.fingerprint() for each in self.filters]]

    def _rule(self) -> dict[str, Any] | None:
        return None if self.binarise is None else dataclasses.asdict(self.binarise)

    def _taken(self) -> Iterator[Row]:
        """The first `limit` of a random `fraction`."""
        return itertools.islice(self._drawn(), self.limit)

    def _drawn(self) -> Iterator[Row]:
        rows = self.source.rows()
        if self.fraction == 1.0:
            return rows
        import numpy as np

        random = np.random.Generator(np.random.Philox(key=[self.draw, 0]))
        return (row for row in rows if random.random() < self.fraction)


def _told(source: Any) -> str:
    """What it is, and the keys of its table that are not as they are by default."""
    keys: Sequence[dataclasses.Field[Any]] = dataclasses.fields(source) if dataclasses.is_dataclass(source) else ()
    values = {key.name: getattr(source, key.name) for key in keys if key.init and key.repr}
    defaults = {key.name: key.default if key.default_factory is dataclasses.MISSING else key.default_factory() for key in keys}
    changed = {name: value for name, value in values.items() if value != defaults[name]}
    given = (f"{name} = {json.dumps(value, ensure_ascii=False, default=str)}" for name, value in changed.items())
    told = f"{class_name(source)}: {', '.join(given)}".removesuffix(": ")
    return told if len(told) <= MAX_DESCRIPTION else f"{told[: MAX_DESCRIPTION - 1]}…"
