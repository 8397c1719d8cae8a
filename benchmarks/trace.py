"""What a run leaves behind: the times of its steps, its memory, and its losses."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

Moment = tuple[float, float]
"""Seconds on the clock, and seconds that the processors worked for this process."""


@dataclass(frozen=True)
class Trace:
    """Losses and gradient norms have an entry for each step, the seconds for each but the first."""

    losses: Sequence[float]
    norms: Sequence[float]
    seconds: Sequence[float]
    processor_seconds: Sequence[float]
    first_step: float
    """Seconds from the start of the process to the end of the first step."""
    start: int
    """Bytes of memory when the libraries and the weights are there."""
    peak: int

    def rate(self, num_tokens: Sequence[int]) -> float:
        """Real tokens a second, in the median step."""
        return median(tokens / seconds for tokens, seconds in zip(num_tokens[1:], self.seconds, strict=True))

    def processor_rate(self, num_tokens: Sequence[int]) -> float:
        """Real tokens a second of work, in the median step."""
        return median(tokens / seconds for tokens, seconds in zip(num_tokens[1:], self.processor_seconds, strict=True))


def now() -> Moment:
    """The time on both clocks."""
    return time.perf_counter(), time.process_time()


@dataclass
class Watch:
    """Notes when each step ends."""

    begun: Moment = field(default_factory=now)
    ends: list[Moment] = field(default_factory=list)
    start: int = 0

    def loaded(self) -> None:
        """Called when the model is there."""
        from zephyr_kit.devices import resident

        self.start = resident()

    def step_ended(self) -> None:
        """Called after each step."""
        self.ends.append(now())

    def trace(self, losses: Sequence[float], norms: Sequence[float]) -> Trace:
        """All that was noted."""
        pairs = list(zip(self.ends[1:], self.ends[:-1], strict=True))
        seconds, worked = ([end[axis] - before[axis] for end, before in pairs] for axis in (0, 1))
        return Trace(list(losses), list(norms), seconds, worked, self.ends[0][0] - self.begun[0], self.start, peak())


def peak() -> int:
    """Bytes of memory that this process had at most; on a GPU, bytes of the GPU's that tensors took."""
    import torch

    from zephyr_kit.devices import peak_memory

    return torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else peak_memory(torch.device("cpu"))
