"""How long ranks wait for each other where they first meet in a step."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from zephyr_kit.world import World


class Waits:
    """The seconds of this rank, and where they are told to all; no device is waited for to find them.

    With `met_before`, ranks share weights or a batch and meet in every layer: they wait there, and nothing is measured.
    """

    def __init__(self, world: World, device: torch.device, *, met_before: bool) -> None:
        self._world, self._device = world, device
        self._are_measured = world.size > 1 and not met_before
        self._seconds = 0.0
        self._pending: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Take the time of a message that comes before others; on a GPU, the time that it takes there."""
        if self._are_measured and self._device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            begin.record()
            yield
            end.record()
            self._pending.append((begin, end))
        else:
            since = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - since

    def by_rank(self) -> Sequence[Tensor]:
        """The seconds of every rank since this was last asked, on the device; of a GPU as far as it has come, the rest the next time."""
        if not self._are_measured:
            return ()
        while self._pending and self._pending[0][1].query():  # type: ignore[no-untyped-call]
            begin, end = self._pending.pop(0)
            self._seconds += begin.elapsed_time(end) / 1000
        found = torch.zeros(self._world.size, dtype=torch.float64, device=self._device)
        found[self._world.rank] = self._seconds
        self._seconds = 0.0
        return self._world.total(found).unbind()
