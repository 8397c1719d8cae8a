"""The nearest setting with which a stage fits."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace

from zephyr_kit.forecast import LADDER, Forecast, Outlook, highest
from zephyr_kit.protocols import Leaner

LOWER = (512, 1024)
"""Batches that are too small to be chosen, and may be what fits."""


@dataclass(frozen=True)
class Remedy:
    """Settings with which a stage fits."""

    changes: tuple[str, ...]
    """As `--set` takes them."""
    forecast: Forecast

    @property
    def options(self) -> str:
        """What to add to the command, as a shell takes it."""
        return " ".join(f"--set {shlex.quote(change)}" for change in self.changes)


@dataclass(frozen=True)
class _Candidate:
    """A stage with changes."""

    outlook: Outlook
    changes: tuple[str, ...] = ()

    def with_model(self, step: Leaner) -> _Candidate:
        stage = replace(self.outlook.stage, model=step.offer)
        own = step.same_result or step.key in stage.changed
        return self._with(replace(self.outlook, stage=stage), f"{'stages.' + stage.name + '.' if own else ''}model.{step.key}={step.value}")

    def with_optimizer(self, step: Leaner) -> _Candidate:
        train = replace(self.outlook.task.train, optimizer=step.offer)
        return self._with(self.outlook.changed(train=train), f"stages.{self.outlook.stage.name}.train.{step.key}={step.value}")

    def with_cached_reference(self) -> _Candidate:
        return self._with(self.outlook.changed(reference="cached"), f'stages.{self.outlook.stage.name}.reference="cached"')

    def _with(self, outlook: Outlook, change: str) -> _Candidate:
        return _Candidate(outlook, (*self.changes, change))


def find_remedy(outlook: Outlook) -> Remedy | None:
    """The mildest candidate that fits in small batches, then in the largest batches that fit."""
    given = outlook.task.train.tokens_per_batch
    rungs = [rung for rung in (*LOWER, *LADDER) if rung <= (given or outlook.rungs()[-1])] or [LOWER[0]]
    for candidate in _candidates(_Candidate(outlook)):
        if _fits(candidate.outlook, rungs[0]):
            own = candidate.outlook.forecast()
            if own.fits:
                return Remedy(candidate.changes, own)
            largest = highest(rungs, candidate.outlook.with_batches_of, lambda forecast: forecast.device.memory)
            return Remedy((*candidate.changes, f"stages.{outlook.stage.name}.train.tokens_per_batch={largest.tokens_per_batch}"), largest)
    return None


def _fits(outlook: Outlook, tokens: int) -> bool:
    try:
        return outlook.with_batches_of(tokens).fits
    except Exception:  # settings that the model's code cannot go with are no remedy
        return False


def _candidates(bare: _Candidate) -> Iterator[_Candidate]:
    """First what comes to the same model, then a leaner optimizer, last what trains another model."""
    yield bare
    steps = bare.outlook.stage.model.leaner()
    same, other = ([step for step in steps if step.same_result is wanted] for wanted in (True, False))
    for step in same:
        bare = bare.with_model(step)
        yield bare
    if bare.outlook.task.reference == "live":
        bare = bare.with_cached_reference()
        yield bare
    yield from map(bare.with_optimizer, bare.outlook.task.train.optimizer.leaner())
    for step in other:
        bare = bare.with_model(step)
        yield bare
        yield from map(bare.with_optimizer, bare.outlook.task.train.optimizer.leaner())
