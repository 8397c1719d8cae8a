"""The nearest setting with which a stage fits."""

from __future__ import annotations

import itertools
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


def find_remedy(outlook: Outlook) -> Remedy | None:
    """Smaller batches; then change upon change, the mildest first, each that helps; then the largest batches that fit."""
    given = outlook.task.train.tokens_per_batch
    rungs = [rung for rung in (*LOWER, *LADDER) if rung <= (given or outlook.rungs()[-1])] or [LOWER[0]]
    kept: list[str] = []
    least = outlook.with_batches_of(rungs[0])
    for change, leaner in itertools.chain([("", outlook)], _changes(outlook)):
        found = leaner.with_batches_of(rungs[0]) if change else least
        if found.peak < least.peak:
            kept.append(change)
            least = found
        if found.fits:
            largest = highest(rungs, leaner.with_batches_of, lambda forecast: forecast.fits)
            batches = f"stages.{outlook.stage.name}.train.tokens_per_batch={largest.tokens_per_batch}"
            return Remedy((*kept, *([batches] if largest.tokens_per_batch != given else [])), largest)
    return None


def _changes(outlook: Outlook) -> Iterator[tuple[str, Outlook]]:
    """Each with those before it: first what comes to the same model, last what trains another one."""
    name, train = outlook.stage.name, outlook.task.train
    steps = outlook.stage.model.leaner()
    for step in steps:
        if step.same_result:
            outlook = _with_model(outlook, step)
            yield f"stages.{name}.model.{step.key}={step.value}", outlook
    if outlook.task.reference == "live":
        outlook = outlook.changed(reference="cached")
        yield f'stages.{name}.reference="cached"', outlook
    for step in train.optimizer.leaner():
        outlook = outlook.changed(train=replace(train, optimizer=step.offer))
        yield f"stages.{name}.train.{step.key}={step.value}", outlook
    for step in steps:
        if not step.same_result:
            outlook = _with_model(outlook, step)
            own = f"stages.{name}." if step.key in outlook.stage.changed else ""
            yield f"{own}model.{step.key}={step.value}", outlook


def _with_model(outlook: Outlook, step: Leaner) -> Outlook:
    return replace(outlook, stage=replace(outlook.stage, model=step.offer))
