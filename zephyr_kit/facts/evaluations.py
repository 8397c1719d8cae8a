"""What suites have found, from JSON."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from zephyr_kit.facts.files import Complain, read_table
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


def readable(found: Any, where: str, complain: Complain) -> list[Evaluation]:
    """Those of a list from JSON that can be read; the others are told."""
    read = []
    for one in found if isinstance(found, list) else ():
        try:
            read.append(read_evaluation(one))
        except (AttributeError, TypeError, ValueError) as error:
            complain(f"{where}: an evaluation cannot be read: {error}")
    return read


def cells(evaluations: Iterable[Evaluation]) -> dict[str, float]:
    """Each model's value in each column that has one, by `model: column`."""
    return {
        f"{model}: {name}": value
        for evaluation in evaluations
        for model, row in evaluation.rows.items()
        for name, value in row.items()
        if value is not None
    }


def measured_since(run: Path, others: Iterable[Evaluation], complain: Complain) -> list[Evaluation]:
    """What `zkit evaluate` has found of a run; the folder's name is added where a title alone would not tell it from `others`."""
    found = list(_measured(run, complain))
    titles = Counter(one.title for one in (*others, *(one for _, ones in found for one in ones)))
    return [one if titles[one.title] == 1 else replace(one, title=f"{one.title} ({name})") for name, ones in found for one in ones]


def _measured(run: Path, complain: Complain) -> Iterator[tuple[str, Sequence[Evaluation]]]:
    for file in sorted((run / FOLDER).glob(f"*/{RESULT}")):
        where = f"{FOLDER}/{file.parent.name}"
        table = read_table(file, lambda text, where=where: complain(f"{where}/{text}")) or {}
        yield file.parent.name, readable(table.get("evaluations"), f"{where}/{RESULT}", complain)


def _finite(value: float | None) -> float | None:
    return value if value is None or math.isfinite(value) else None
