"""Evaluations in files: how they are read, and where they stand."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import Any

from zephyr_kit.protocols import Evaluation

FOLDER = "evaluations"
"""Of a run, where `zkit evaluate` writes what it has found of it: a folder for each suite and its settings."""
RESULT = "evaluation.json"


def read_evaluation(found: Mapping[str, Any]) -> Evaluation:
    """An evaluation from its JSON; what a version to come has added is left out."""
    names = {each.name for each in fields(Evaluation)}
    intervals = {
        model: {name: (low, high) for name, (low, high) in measures.items()} for model, measures in found.get("intervals", {}).items()
    }
    return finite(Evaluation(**{**{name: value for name, value in found.items() if name in names}, "intervals": intervals}))


def finite(evaluation: Evaluation) -> Evaluation:
    """None for every value that is not finite, and no interval that has such an end: JSON has no word for them."""
    rows = {model: {name: _finite(value) for name, value in row.items()} for model, row in evaluation.rows.items()}
    intervals = {
        model: {name: ends for name, ends in measures.items() if all(map(math.isfinite, ends))}
        for model, measures in evaluation.intervals.items()
    }
    return replace(evaluation, rows=rows, intervals=intervals)


def cells(evaluations: Iterable[Evaluation]) -> dict[str, float]:
    """Each model's value in each column that has one, by `model: column`."""
    return {
        f"{model}: {name}": value
        for evaluation in evaluations
        for model, row in evaluation.rows.items()
        for name, value in row.items()
        if value is not None
    }


def _finite(value: float | None) -> float | None:
    return value if value is None or math.isfinite(value) else None
