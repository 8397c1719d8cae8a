"""Curves in a line of text."""

from __future__ import annotations

import math
from collections.abc import Sequence

BLOCKS = "▁▂▃▄▅▆▇█"
GAP = "·"
"""In the place of what is not finite."""


def sparkline(values: Sequence[float], width: int) -> str:
    """The values from left to right in at most `width` characters, each the mean of its share; the lowest and the highest fill the line."""
    means = [_mean(values[first:last]) for first, last in _shares(len(values), width)]
    finite = [value for value in means if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    return "".join(_block(value, low, high) for value in means)


def _shares(count: int, width: int) -> list[tuple[int, int]]:
    size = min(count, width)
    return [(place * count // size, (place + 1) * count // size) for place in range(size)]


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def _block(value: float, low: float, high: float) -> str:
    if not math.isfinite(value):
        return GAP
    place = 0.5 if high == low else (value - low) / (high - low)
    return BLOCKS[min(int(place * len(BLOCKS)), len(BLOCKS) - 1)]
