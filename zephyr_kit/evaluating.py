"""Suites at work on models, each in a folder of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zephyr_kit.config import plain
from zephyr_kit.evaluations import RESULT, finite, read_evaluation
from zephyr_kit.keys import what_is_read
from zephyr_kit.metrics import as_text
from zephyr_kit.observe import Narrator
from zephyr_kit.protocols import Evaluation, Suite
from zephyr_kit.records import as_json, digest, read_json, write_json
from zephyr_kit.subjects import Subject
from zephyr_kit.surroundings import surroundings

NUM_FIGURES = 3
"""Columns that are told of what was measured before."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What a suite has found."""

    evaluations: list[Evaluation]
    before: bool = False
    """Whether it was found before, and nothing has changed since."""


def evaluate(suite: Suite, models: Mapping[str, Subject], folder: Path) -> list[Evaluation]:
    """What a suite finds; None for what is not finite."""
    return [finite(one) for one in as_found(suite, models, folder)]


def as_found(suite: Suite, models: Mapping[str, Subject], folder: Path) -> list[Evaluation]:
    """The same as the suite says it, figures that are not finite included."""
    last = list(models.values())[-1]
    folder.mkdir(parents=True, exist_ok=True)
    found = suite.evaluate(models, last.tokenizer, folder)
    return [found] if isinstance(found, Evaluation) else list(found)


def evaluate_once(
    name: str, suite: Suite, settings: Mapping[str, Any], models: Mapping[str, Subject], *, folder: Path, narrator: Narrator
) -> Measured:
    """The same, or what it has found before with these settings, data and models; written to a folder of its own in `folder`."""
    contents = {name: subject.content for name, subject in models.items()}
    key = as_json({"suite": settings, "read": what_is_read(suite), "models": contents})
    place = folder / f"{name}-{digest(key)[:8]}"
    known = read_json(place / RESULT, "remove it to measure again") if (place / RESULT).exists() else None
    if known is not None and known["key"] == key:
        evaluations = [read_evaluation(facts) for facts in known["evaluations"]]
        narrator.say(f"{name}: measured before, nothing changed ({place}){_main_figures(evaluations)}")
        return Measured(evaluations, before=True)
    narrator.say(f"{name}: measuring {', '.join(models)} ({place})")
    found = evaluate(suite, models, place)
    # Settings, models and content of the data, what was found, and on which machine.
    write_json(place / RESULT, {"key": key, "evaluations": plain(found), "made": surroundings()})
    return Measured(found)


def _main_figures(evaluations: Sequence[Evaluation]) -> str:
    """Those of the first columns of the first table that have any."""
    values = {
        column: [f"{model} {as_text(value)}" for model, row in table.rows.items() if (value := row.get(column)) is not None]
        for table in evaluations[:1]
        for column in table.columns
    }
    shown = [f"{column}: {', '.join(found)}" for column, found in values.items() if found]
    return "".join(f"; {one}" for one in shown[:NUM_FIGURES])


def folder_names(suites: Sequence[str]) -> list[str]:
    """A name for the folder of each suite; a second of the same kind is numbered."""
    seen: Counter[str] = Counter()
    names = []
    for suite in suites:
        seen[suite] += 1
        names.append(suite if seen[suite] == 1 else f"{suite}-{seen[suite]}")
    return names
