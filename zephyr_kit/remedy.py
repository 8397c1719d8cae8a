"""The nearest setting with which a stage fits."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

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
    tokens: int
    """Of the smallest batches."""
    changes: tuple[str, ...] = ()

    @cached_property
    def peak(self) -> float:
        """Bytes in the smallest batches; infinite for settings that the model's code cannot go with."""
        try:
            return self.outlook.with_batches_of(self.tokens).peak
        except Exception:  # whatever that code raises
            return math.inf

    def with_model(self, step: Leaner) -> _Candidate:
        """With this key alone: the step's own table has those of the steps before it too."""
        model: Any = self.outlook.stage.model
        stage = replace(self.outlook.stage, model=replace(model, **{step.key: getattr(step.offer, step.key)}))
        own = step.same_result or step.key in stage.changed
        return self._with(replace(self.outlook, stage=stage), f"{'stages.' + stage.name + '.' if own else ''}model.{step.key}={step.value}")

    def with_optimizer(self, step: Leaner) -> _Candidate:
        train = replace(self.outlook.task.train, optimizer=step.offer)
        return self._with(self.outlook.changed(train=train), f"stages.{self.outlook.stage.name}.train.{step.key}={step.value}")

    def with_cached_reference(self) -> _Candidate:
        return self._with(self.outlook.changed(reference="cached"), f'stages.{self.outlook.stage.name}.reference="cached"')

    def _with(self, outlook: Outlook, change: str) -> _Candidate:
        key = change.partition("=")[0]
        return _Candidate(outlook, self.tokens, (*(each for each in self.changes if each.partition("=")[0] != key), change))


def find_remedy(outlook: Outlook) -> Remedy | None:
    """The mildest candidate that fits in small batches, then in the largest batches that fit."""
    given = outlook.task.train.tokens_per_batch
    rungs = [rung for rung in (*LOWER, *LADDER) if rung <= (given or outlook.rungs()[-1])] or [LOWER[0]]
    for candidate in _candidates(_Candidate(outlook, rungs[0])):
        if candidate.peak <= outlook.device.memory:
            own = candidate.outlook.forecast()
            if own.fits:
                return Remedy(candidate.changes, own)
            largest = highest(rungs, candidate.outlook.with_batches_of, lambda forecast: forecast.device.memory)
            return Remedy((*candidate.changes, f"stages.{outlook.stage.name}.train.tokens_per_batch={largest.tokens_per_batch}"), largest)
    return None


def _candidates(given: _Candidate) -> Iterator[_Candidate]:
    """First what comes to the same model, then a leaner optimizer, last what trains another model; each before what slows it down too."""
    yield given
    steps = given.outlook.stage.model.leaner()
    same, other = ([step for step in steps if step.same_result is wanted] for wanted in (True, False))
    lean = given
    for step in same:
        lean = lean.with_model(step)
        yield lean
    if lean.outlook.task.reference == "live":
        lean = lean.with_cached_reference()
        yield lean
    bases = [given] if lean is given else [given, lean]
    optimizers = given.outlook.task.train.optimizer.leaner()
    yield from (base.with_optimizer(each) for each in optimizers for base in bases)
    for step in other:
        bases = [base.with_model(step) for base in bases]
        yield from bases
        yield from (base.with_optimizer(each) for each in optimizers for base in bases)
