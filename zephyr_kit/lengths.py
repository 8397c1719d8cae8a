"""How many examples are how long."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from zephyr_kit.plan import Indices

NUM_BARS = 12
STEPS = (1, 2, 2.5, 5, 10)


@dataclass(frozen=True)
class Bar:
    """One bar of a histogram."""

    label: str
    count: int
    share: float
    """Of the highest one."""


@dataclass(frozen=True)
class Lengths:
    """How long something is, in tokens."""

    name: str
    mean: float
    quantiles: tuple[int, ...]
    """At 5, 50 and 95 %, and the longest."""
    bars: tuple[Bar, ...]


def measured(columns: Mapping[str, Indices]) -> Iterator[Lengths]:
    """Of each column of lengths (examples,), in bars of one width."""
    top = max(int(values.max()) for values in columns.values())
    width = _width(top)
    edges = np.arange(0, top + width + 1, width)
    for name, values in columns.items():
        counts = np.trim_zeros(np.histogram(values, edges)[0], "b")
        quantiles = np.quantile(values, [0.05, 0.5, 0.95, 1], method="inverted_cdf")
        bars = tuple(
            Bar(f"{first:,}–{first + width - 1:,}", int(count), float(count / counts.max()))
            for first, count in zip(edges.tolist(), counts.tolist(), strict=False)
        )
        yield Lengths(name, float(values.mean()), tuple(int(one) for one in quantiles), bars)


def _width(top: int) -> int:
    """Of a bar: a round number of which at most `NUM_BARS` reach to `top`."""
    wanted = max(1, (top + 1) / NUM_BARS)
    power = 10 ** int(np.floor(np.log10(wanted)))
    return next(int(np.ceil(step * power)) for step in STEPS if int(np.ceil(step * power)) >= wanted)
