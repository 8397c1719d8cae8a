"""What steps come to, read off the device now and then."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from statistics import fmean as mean

import torch

from zephyr_kit.engine import Totals
from zephyr_kit.observe import Report


class Meter:
    """Turns totals on the device into reports, waiting for the device at most about once a second."""

    def __init__(
        self,
        *,
        num_steps: int,
        epoch: Callable[[int], float],
        rows: Callable[[int], Sequence[str]] = lambda _: (),
        every: float = 1.0,
        num_skipped: int = 0,
        memory: Callable[[], int] = lambda: 0,
    ) -> None:
        self._num_steps, self._epoch, self._rows, self._every, self._memory = num_steps, epoch, rows, every, memory
        self.num_skipped = num_skipped
        self._waiting: list[Totals] = []
        self._since = time.monotonic()

    def add(self, totals: Totals) -> list[Report]:
        """Take the totals of a step; return the reports that are due."""
        self._waiting.append(totals)
        return self.flush() if time.monotonic() - self._since >= self._every else []

    def restart(self) -> None:
        """Forget the time since the last reports: it went into something other than steps."""
        self._since = time.monotonic()

    def flush(self) -> list[Report]:
        """All reports that are waiting."""
        if not self._waiting:
            return []
        waiting, self._waiting = self._waiting, []
        rows = torch.stack([torch.stack([t.gradient_norm.double(), *t.means.values(), *t.waits]) for t in waiting]).tolist()
        seconds, self._since = time.monotonic() - self._since, time.monotonic()
        speed, memory = sum(t.num_tokens for t in waiting) / max(seconds, 1e-9), self._memory()
        # Like the speed, a mean over these steps: what is read off together can be compared.
        waits = tuple(mean(column) for column in list(zip(*rows, strict=True))[1 + len(waiting[0].means) :])
        return [self._report(totals, row, speed, memory, waits) for totals, row in zip(waiting, rows, strict=True)]

    def _report(self, totals: Totals, row: list[float], speed: float, memory: int, waits: tuple[float, ...]) -> Report:
        norm, *values = row[: 1 + len(totals.means)]
        means = dict(zip(totals.means, values, strict=True))
        loss = means.pop("loss")
        self.num_skipped = 0 if math.isfinite(loss) and math.isfinite(norm) else self.num_skipped + 1
        return Report(
            totals.step,
            self._num_steps,
            self._epoch(totals.step - 1),
            loss,
            means,
            norm,
            totals.learning_rate,
            totals.num_tokens,
            totals.num_targets,
            speed,
            self.num_skipped,
            tuple(self._rows(totals.step - 1)) if self.num_skipped else (),
            memory,
            waits,
        )
