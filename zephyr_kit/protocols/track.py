"""Places that figures of training are shown in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from zephyr_kit.observe import Run


class Tracker(Protocol):
    """A place that figures of training are shown in: a table in a preset's `track`."""

    def problems(self) -> Sequence[str]:
        """What stands in the way; empty if nothing."""
        ...

    def destination(self) -> str | None:
        """Where the figures go, if they leave this machine: it is told before they do."""
        ...

    def open(self, run: Run) -> Track:
        """Begin the track of a stage, or go on with it where `run.first_step` is not 0."""
        ...


class Track(Protocol):
    """What a tracker has of one stage."""

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Add figures of a step; those of held-out data under names that begin with `held_out/`."""
        ...

    def close(self, error: BaseException | None) -> None:
        """Nothing more comes; `error` is what ended the stage, if something did."""
        ...
