"""How much of a data source to take."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Gt, Interval

from zephyr_kit.example import BadRow, Example
from zephyr_kit.protocols import INLINE, DataSource


@dataclass(frozen=True, slots=True)
class Portion:
    """A data source, and how much of it to take; the other keys of its table are the source's own."""

    source: DataSource = field(metadata={INLINE: True})
    fraction: Annotated[float, Interval(gt=0, le=1)] = 1.0
    """The share of rows to take, drawn at random."""
    limit: Annotated[int, Gt(0)] | None = None
    """At most so many rows."""
    draw: int = 0
    """Seed of the random draw."""

    def rows(self) -> Iterator[Example | BadRow]:
        """The rows taken: the first `limit` of a random `fraction`, in the source's order."""
        return itertools.islice(self._drawn(), self.limit)

    def _drawn(self) -> Iterator[Example | BadRow]:
        rows = self.source.rows()
        if self.fraction == 1.0:
            return rows
        import numpy as np

        random = np.random.Generator(np.random.Philox(key=[self.draw, 0]))
        return (row for row in rows if random.random() < self.fraction)
