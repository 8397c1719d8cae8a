"""Where the settings of several runs differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from zephyr_kit.facts.run import RunFacts


@dataclass(frozen=True, slots=True)
class Difference:
    """A key that not all runs give the same value, and the value of each; None where a run has no such key."""

    path: str
    values: tuple[Any, ...]


def told_apart(runs: Sequence[RunFacts]) -> list[RunFacts]:
    """The runs, those whose folders have one name labelled by the whole path."""
    names = Counter(run.label for run in runs)
    return [run if names[run.label] == 1 else replace(run, label=str(run.folder)) for run in runs]


def differing(runs: Sequence[RunFacts]) -> Iterator[Difference]:
    """Every key in which runs differ, in the order of the presets."""
    for path in dict.fromkeys(path for run in runs for path in run.settings):
        values = tuple(run.settings.get(path) for run in runs)
        if any(value != values[0] for value in values):
            yield Difference(path, values)
