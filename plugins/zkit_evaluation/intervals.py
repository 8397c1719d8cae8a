"""How sure a mean is: percentiles of means of samples drawn from it again (the bootstrap, Efron 1979)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

RESAMPLES = 1000
CONFIDENCE = 0.95

Interval = tuple[float, float]
Numbers = npt.NDArray[np.float64]


def interval_of_mean(values: Sequence[float], *, seed: int = 0) -> Interval | None:
    """Where the mean lies; None of fewer than two values."""
    array = np.asarray(values, np.float64)
    return interval_of(lambda drawn: float(array[drawn].mean()), len(array), seed=seed)


def interval_of_ratio(above: Sequence[float], below: Sequence[float], *, seed: int = 0) -> Interval | None:
    """Where the ratio of two sums lies, whose parts belong together."""
    top, bottom = np.asarray(above, np.float64), np.asarray(below, np.float64)
    return interval_of(lambda drawn: float(top[drawn].sum() / bottom[drawn].sum()), len(top), seed=seed)


def interval_of(statistic: Callable[[npt.NDArray[np.int64]], float], count: int, *, seed: int) -> Interval | None:
    """The same of anything that is told from the numbers of `count` parts, drawn with replacement."""
    if count < 2:
        return None
    random = np.random.Generator(np.random.Philox(seed))
    found = [statistic(random.integers(0, count, count)) for _ in range(RESAMPLES)]
    low, high = np.quantile(found, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def known(intervals: dict[str, Interval | None]) -> dict[str, Interval]:
    """Those that there are."""
    return {name: interval for name, interval in intervals.items() if interval is not None}
