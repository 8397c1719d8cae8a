"""What a stage has cost, and when it was worked on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from zephyr_kit.exits import Exit


@dataclass(frozen=True, slots=True)
class Session:
    """One time that a stage was worked on, from `run.json`; what was not noted has its default."""

    began: str = ""
    """In ISO 8601, UTC."""
    seconds: float | None = None
    """None while it goes on, or where the process was killed."""
    outcome: str = ""
    """`done`, what stopped it, or empty where it goes on or the process was killed."""
    exit: int = 0
    memory: int | None = None
    """The most bytes that its process has held of its device."""
    device: str = ""
    ranks: int = 1
    key: str = ""
    """Digest of what the stage's result depends on."""
    flops_per_token: float | None = None
    reference_flops_per_token: float = 0.0
    command: Sequence[str] = ()
    packages: Mapping[str, str | None] = field(default_factory=dict)

    @classmethod
    def of(cls, note: Mapping[str, Any]) -> Session:
        """From a note."""
        known = {each.name for each in fields(cls)}
        return cls(**{name: value for name, value in note.items() if name in known})

    @property
    def failed(self) -> bool:
        """Whether it ended by an error: it was not done, nor was it asked to stop."""
        return self.exit not in (Exit.DONE, Exit.TIME) and self.exit < Exit.HANGUP


@dataclass(frozen=True, slots=True)
class Cost:
    """What a stage has cost in all; None where that was not noted, or does not apply."""

    examples: int | None = None
    """Seen in training, each as often as it was seen."""
    tokens: int | None = None
    """Read by the model in training, a shared prompt counted once."""
    targets: int | None = None
    """Of these, those that the loss was taken over."""
    flops: float | None = None
    """Floating-point operations: `tokens` times those of a token, as the plan counts them in the largest batch; and a reference's."""
    seconds: float | None = None
    """Of every session that has led to this result, loading, checkpoints and looks at held-out data included."""
    device_seconds: float | None = None
    """The same, times the devices."""
    step_seconds: float | None = None
    """In optimiser steps alone."""
    memory: int | None = None
    """The most bytes that a process has held of its device."""
    dollars: float | None = None
    """For the answers of endpoints that have a price."""


def spent_in(sessions: Sequence[Session]) -> dict[str, Any]:
    """The part of a cost that sessions tell."""
    timed = [(one.seconds, one.ranks) for one in sessions if one.seconds is not None]
    if not timed:
        return {}
    memory = max((one.memory for one in sessions if one.memory), default=None)
    return {"seconds": sum(took for took, _ in timed), "device_seconds": sum(took * ranks for took, ranks in timed), "memory": memory}
