"""The figures of a sweep's runs, with their mean and spread over seeds."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zephyr_kit.config import plain
from zephyr_kit.journal import Journal
from zephyr_kit.markdown import figure, table
from zephyr_kit.metrics import HELD_OUT
from zephyr_kit.runs import write_json, write_text
from zephyr_kit.sweep import Combination, Outcome, short_names

BESIDE = ("epoch", "gradient_norm", "learning_rate", "steps")
"""Figures at a stage's end that nobody compares."""
Figures = Mapping[str, float]


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
        if self.deviation is None:
            return f"{self.mean:.4g}"
        digits = 4 if not self.deviation else max(0, min(6, 1 - math.floor(math.log10(self.deviation))))
        return f"{self.mean:.{digits}f} ± {self.deviation:.{digits}f}"


@dataclass(frozen=True, slots=True)
class Setting:
    """The runs that differ in their seed alone."""

    label: str
    choices: Mapping[str, str]
    outcomes: Sequence[Outcome]
    stages: Mapping[str, Mapping[str, Spread]]
    """For each stage, its figures over the runs that have finished it."""


def settings_of(outcomes: Sequence[Outcome]) -> list[Setting]:
    """The outcomes by what sets them apart but for their seed."""
    groups: dict[tuple[tuple[str, str], ...], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.combination.setting, []).append(outcome)
    names = short_names(list(outcomes[0].combination.choices))
    return [
        Setting(", ".join(f"{names[key]} = {value}" for key, value in setting) or "all", dict(setting), group, _spreads(group))
        for setting, group in groups.items()
    ]


def figures_of(run: Path) -> dict[str, dict[str, float]]:
    """For each finished stage of a run, the figures that it ended with."""
    marks = sorted(run.glob("*/done.json"))
    found = {mark.parent.name: _figures(json.loads(mark.read_text("utf-8"))) for mark in marks}
    return {stage: figures for stage, figures in found.items() if figures}


def write_sweep(folder: Path, title: str, outcomes: Sequence[Outcome], stages: Sequence[str]) -> Path:
    """Write `sweep.json` and `sweep.md`; `stages` are those of the preset, in order."""
    settings = settings_of(outcomes)
    runs = [{**_told(outcome), "stages": figures_of(outcome.folder), "taken": _taken(outcome.folder)} for outcome in outcomes]
    spreads = [{"choices": setting.choices, "stages": plain(setting.stages)} for setting in settings]
    write_json(folder / "sweep.json", {"title": title, "runs": runs, "settings": spreads})
    path = folder / "sweep.md"
    write_text(path, "\n".join(markdown(title, outcomes, settings, stages)))
    return path


def markdown(title: str, outcomes: Sequence[Outcome], settings: Sequence[Setting], stages: Sequence[str]) -> list[str]:
    """The sweep to read: how each run ended, what was shared, and a table for each stage."""
    lines = [f"# {title}", "", f"{_count(outcomes)}. A figure is the mean over seeds ± the standard deviation of the sample.", ""]
    lines += [f"- `{outcome.combination.name}` {outcome.state}: {outcome.reason}" for outcome in outcomes if outcome.reason]
    for name in (name for name in stages if any(name in setting.stages for setting in settings)):
        lines += ["", f"## Stage {name}", "", _shared(name, outcomes), "", *stage_table(name, settings)]
    head = ("run", "state", *outcomes[0].combination.choices)
    rows = [(f"`{one.combination.name}`", one.state, *one.combination.choices.values()) for one in outcomes]
    return [*lines, "", "## Runs", "", *table(head, rows), ""]


def stage_table(name: str, settings: Sequence[Setting]) -> list[str]:
    """A row for each setting; one for all where they have the stage in common."""
    having = [setting for setting in settings if name in setting.stages]
    columns = list(dict.fromkeys(column for setting in having for column in shown(setting.stages[name])))
    rows = [(str(max(s.count for s in setting.stages[name].values())), *_cells(setting, name, columns)) for setting in having]
    labels = [setting.label for setting in having]
    if len(set(rows)) == 1 and len(rows) > 1:
        labels, rows = ["all"], rows[:1]
    return table(("setting", "seeds", *columns), [(label, *row) for label, row in zip(labels, rows, strict=True)])


def shown(figures: Mapping[str, Spread]) -> list[str]:
    """The figures of a stage that a reader wants first: those of held-out data, where there are any."""
    held_out = [name for name in figures if name.startswith(HELD_OUT)]
    return held_out or list(figures)


def _cells(setting: Setting, name: str, columns: Sequence[str]) -> list[str]:
    return [str(setting.stages[name].get(column) or figure(None)) for column in columns]


def _spreads(outcomes: Sequence[Outcome]) -> dict[str, dict[str, Spread]]:
    runs = [figures_of(outcome.folder) for outcome in outcomes]
    spreads: dict[str, dict[str, Spread]] = {}
    for stage in dict.fromkeys(name for run in runs for name in run):
        names = dict.fromkeys(name for run in runs for name in run.get(stage, {}))
        values = {name: [run[stage][name] for run in runs if name in run.get(stage, {})] for name in names}
        spreads[stage] = {name: Spread.of(found) for name, found in values.items()}
    return spreads


def _figures(done: Mapping[str, Any]) -> dict[str, float]:
    """Numbers of a stage's last word; of an evaluation, each model's in each column."""
    cells = {
        f"{model}: {name}": value
        for evaluation in done.get("evaluations", ())
        for model, row in evaluation["rows"].items()
        for name, value in row.items()
    }
    return {name: float(value) for name, value in {**done, **cells}.items() if type(value) in (int, float) and name not in BESIDE}


def _taken(run: Path) -> dict[str, str]:
    """The stages that the run took from others, and from where."""
    return {note["stage"]: note["taken_from"] for note in Journal(run / "run.json").notes() if "taken_from" in note}


def _shared(name: str, outcomes: Sequence[Outcome]) -> str:
    having = [outcome for outcome in outcomes if (outcome.folder / name / "done.json").exists()]
    taken = sum(name in _taken(outcome.folder) for outcome in having)
    made = len(having) - taken
    return f"Made {'once' if made == 1 else f'{made} times'}, for {len(having)} {'run' if len(having) == 1 else 'runs'}."


def _count(outcomes: Sequence[Outcome]) -> str:
    states = [outcome.state for outcome in outcomes]
    told = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    return f"{len(outcomes)} combinations: {told}"


def _told(outcome: Outcome) -> dict[str, Any]:
    combination: Combination = outcome.combination
    return {"name": combination.name, "choices": combination.choices, "state": outcome.state, "reason": outcome.reason}

