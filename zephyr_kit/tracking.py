"""A tracker as the observer that it is: told of a stage's start, steps and end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from zephyr_kit import hookimpl
from zephyr_kit.metrics import HELD_OUT
from zephyr_kit.observe import Report, Run
from zephyr_kit.protocols import Track, Tracker

NO_FIGURES = ("step", "rows", "wait_seconds")
"""Facts of a step that are no figures."""


class Tracking:
    """Tells a tracker what observers are told. One that fails is left alone for the rest of the stage: it may wait long each time."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._track: Track | None = None

    @hookimpl
    def zkit_run_started(self, run: Run) -> None:
        """Begin a track."""
        self._track = self._tracker.open(run)

    @hookimpl
    def zkit_step_ended(self, report: Report) -> None:
        """Write a step's figures."""
        figures = {name: float(value) for name, value in report.facts().items() if name not in NO_FIGURES}
        self._write(report.step, figures)

    @hookimpl
    def zkit_held_out(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the figures of held-out data."""
        self._write(step, {f"{HELD_OUT}{name}": value for name, value in metrics.items()})

    @hookimpl
    def zkit_run_ended(self, error: BaseException | None) -> None:
        """End the track."""
        track, self._track = self._track, None
        if track is not None:
            track.close(error)

    def _write(self, step: int, figures: Mapping[str, float]) -> None:
        if self._track is not None:
            with self._given_up_on_failure():
                self._track.write(step, figures)

    @contextmanager
    def _given_up_on_failure(self) -> Iterator[None]:
        try:
            yield
        except Exception:
            self._track = None
            raise
