"""The figures of a sweep's runs, with their mean and spread over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from zephyr_kit.evaluations import cells
from zephyr_kit.facts import StageFacts, read_run
from zephyr_kit.metrics import HELD_OUT
from zephyr_kit.runs import RunError
from zephyr_kit.sweep.grid import Combination, short_names

BESIDE = ("epoch", "gradient_norm", "learning_rate", "steps")
"""Figures at a stage's end that nobody compares."""


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over the seeds."""

    mean: float
    deviation: float | None
    """The standard deviation of the sample; None for a single one."""
    count: int

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        """Of one value or more."""
        return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))

    def __str__(self) -> str:
        if self.deviation is None or not math.isfinite(self.deviation):
            return f"{self.mean:.4g}"
        if not self.deviation:
            return f"{self.mean:.6g} ± 0"
        digits = max(0, min(6, 1 - math.floor(math.log10(self.deviation))))
        return f"{self.mean:.{digits}f} ± {self.deviation:.{digits}f}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a combination stands."""

    combination: Combination
    folder: Path
    state: str
    """`finished`, `failed` or `not finished`."""
    reason: str = ""
    """Why it failed."""


@dataclass(frozen=True, slots=True)
class Setting:
    """The runs that differ in their seed alone."""

    label: str
    choices: Mapping[str, str]
    outcomes: Sequence[Outcome]
    stages: Mapping[str, Mapping[str, Spread]]
    """For each stage, its figures over the runs that have finished it."""

    def num_seeds(self, stage: str) -> int:
        """How many runs have finished a stage."""
        return max(spread.count for spread in self.stages[stage].values())


def settings_of(outcomes: Sequence[Outcome]) -> list[Setting]:
    """The outcomes by what sets them apart but for their seed."""
    groups: dict[tuple[tuple[str, str], ...], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.combination.setting, []).append(outcome)
    names = short_names(list(outcomes[0].combination.choices))
    return [
        Setting(", ".join(f"{names[key]}={value}" for key, value in setting) or "all", dict(setting), group, _spreads(group))
        for setting, group in groups.items()
    ]


def figures_of(run: Path) -> dict[str, dict[str, float]]:
    """For each finished stage of a run, the figures that it ended with; none of what cannot be read."""
    return {stage.name: figures for stage in stages_of(run) if stage.state == "done" and (figures := _figures(stage))}


def stages_of(run: Path) -> Sequence[StageFacts]:
    """What is known of a run's stages, but for their curves; nothing, if it has not begun or is damaged."""
    try:
        return read_run(run, most=2, whole=False).stages
    except RunError:
        return ()


def _spreads(outcomes: Sequence[Outcome]) -> dict[str, dict[str, Spread]]:
    runs = [figures_of(outcome.folder) for outcome in outcomes]
    spreads: dict[str, dict[str, Spread]] = {}
    for stage in dict.fromkeys(name for run in runs for name in run):
        names = dict.fromkeys(name for run in runs for name in run.get(stage, {}))
        values = {name: [run[stage][name] for run in runs if name in run.get(stage, {})] for name in names}
        spreads[stage] = {name: Spread.of(found) for name, found in values.items()}
    return spreads


def _figures(stage: StageFacts) -> dict[str, float]:
    """Numbers of a stage's last word; of an evaluation, each model's in each column."""
    told = {**stage.figures, **cells(stage.evaluations)}
    numbers = {name: float(value) for name, value in told.items() if type(value) in (int, float) and name not in BESIDE}
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def shown(figures: Mapping[str, Spread]) -> list[str]:
    """The figures of a stage that a reader wants first: those of held-out data, where there are any."""
    held_out = [name for name in figures if name.startswith(HELD_OUT)]
    return held_out or list(figures)
