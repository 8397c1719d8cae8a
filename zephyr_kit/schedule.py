"""The learning rate at each step, equal to that of transformers' schedules of the same name."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["constant", "cosine", "linear"]


def learning_rate(step: int, *, peak: float, schedule: Schedule, warmup: float, num_steps: int) -> float:
    """Learning rate of step `step` (from 0) of `num_steps`, after a linear warm-up of a share `warmup` of them.

    The first step of a warm-up has the rate 0, as with transformers, so that runs compare.
    """
    num_warmup = math.ceil(warmup * num_steps)
    if step < num_warmup:
        return peak * step / num_warmup
    if schedule == "constant":
        return peak
    progress = (step - num_warmup) / max(1, num_steps - num_warmup)
    if schedule == "linear":
        return peak * max(0.0, 1 - progress)
    return peak * max(0.0, 0.5 * (1 + math.cos(math.pi * progress)))
