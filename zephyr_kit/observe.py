"""What observers are told about a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Run:
    """A stage that trains."""

    name: str
    stage: str
    folder: Path
    num_steps: int
    first_step: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The stage's resolved keys, flat: `train.learning_rate`, `model.lora.rank` and so on."""


@dataclass(frozen=True, slots=True)
class Report:
    """The figures of one optimiser step; losses and metrics are means over its units."""

    step: int
    num_steps: int
    epoch: float
    loss: float
    metrics: Mapping[str, float]
    gradient_norm: float
    learning_rate: float
    num_tokens: int
    """Tokens that the model read, over all ranks."""
    num_targets: int
    """Tokens that it was trained on, over all ranks."""
    tokens_per_second: float
    num_skipped: int = 0
    """How many steps in a row, up to this one, have changed no weight, for their loss or gradient was not finite."""
    rows: tuple[str, ...] = ()
    """Where the rows of a skipped step stand."""
    memory: int = 0
    """Bytes that this process holds of its device, of the host where that is a CPU; 0 where nobody has looked."""
    wait_seconds: tuple[float, ...] = ()
    """How long each rank waited for the others to come as far, by rank; empty for one rank, and where they share weights or batches."""

    @property
    def wait_share(self) -> float:
        """The part of the ranks' time that they waited for each other; 0 where that is not known."""
        taken = self.num_tokens / self.tokens_per_second * len(self.wait_seconds) if self.tokens_per_second else 0.0
        return sum(self.wait_seconds) / taken if taken else 0.0

    def facts(self) -> dict[str, Any]:
        """One line of `metrics.jsonl`."""
        return {
            "step": self.step,
            "epoch": round(self.epoch, 6),
            "loss": self.loss,
            **self.metrics,
            "gradient_norm": self.gradient_norm,
            "learning_rate": self.learning_rate,
            "num_tokens": self.num_tokens,
            "num_targets": self.num_targets,
            "tokens_per_second": round(self.tokens_per_second, 1),
            **({"memory": self.memory} if self.memory else {}),
            **self._waits(),
            **({"skipped": self.num_skipped, "rows": self.rows} if self.num_skipped else {}),
        }

    def _waits(self) -> dict[str, Any]:
        if not self.wait_seconds:
            return {}
        return {"wait_share": round(self.wait_share, 4), "wait_seconds": [round(seconds, 6) for seconds in self.wait_seconds]}


Advance = Callable[[int], None]
"""Told how far a piece of work has come, in absolute terms."""


class Narrator(Protocol):
    """Whoever tells the user what happens."""

    def say(self, text: str) -> None:
        """One line."""
        ...

    def track(self, label: str, total: int | None = None) -> AbstractContextManager[Advance]:
        """A piece of work that takes a while."""
        ...


class Silent:
    """A narrator who keeps to himself what is done in passing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def track(self, label: str, total: int | None = None) -> AbstractContextManager[Advance]:
        """Nothing either."""
        return nullcontext(lambda _: None)
