"""What is shown of a sweep, as text and as a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from zephyr_kit.facts import RunFacts, read_run
from zephyr_kit.facts.files import read_tables
from zephyr_kit.sweep.spread import Outcome, Setting, settings_of, shown

NONE = "–"
NUM_POINTS = 300
"""Of a curve, at the most."""
Table = tuple[Sequence[str], Sequence[Sequence[str]]]
"""A head, and rows."""


@dataclass(frozen=True)
class View:
    """All that is shown."""

    title: str
    outcomes: Sequence[Outcome]
    order: Sequence[str]
    """The stages of the preset."""

    @cached_property
    def settings(self) -> list[Setting]:
        """The runs by what sets them apart but for their seed."""
        return settings_of(self.outcomes)

    @cached_property
    def facts(self) -> dict[Path, RunFacts]:
        """What is known of each finished run, by its folder."""
        return {one.folder: read_run(one.folder, most=NUM_POINTS) for one in self.outcomes if one.state == "finished"}

    @property
    def stages(self) -> list[str]:
        """Those that some run has finished."""
        return [name for name in self.order if any(name in setting.stages for setting in self.settings)]

    @property
    def summary(self) -> str:
        """How the runs ended, in a sentence."""
        states = [outcome.state for outcome in self.outcomes]
        told = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        return f"{len(states)} combinations: {told}. A figure is the mean over seeds ± the standard deviation of the sample"

    @property
    def failures(self) -> list[Outcome]:
        """What failed, and why."""
        return [outcome for outcome in self.outcomes if outcome.reason]

    @property
    def runs(self) -> Table:
        """Every run, with what it was given."""
        head = ("run", "state", *self.outcomes[0].combination.choices)
        return head, [(one.combination.name, one.state, *one.combination.choices.values()) for one in self.outcomes]

    def made(self, stage: str) -> str:
        """How often a stage was made, and for how many runs."""
        having = [outcome for outcome in self.outcomes if (outcome.folder / stage / "done.json").exists()]
        times = len(having) - sum(stage in taken(outcome) for outcome in having)
        return f"Made {'once' if times == 1 else f'{times} times'}, for {len(having)} {'run' if len(having) == 1 else 'runs'}."

    def table(self, stage: str) -> Table:
        """A row for each setting; one for all where they have the stage in common."""
        having = [setting for setting in self.settings if stage in setting.stages]
        columns = list(dict.fromkeys(column for setting in having for column in shown(setting.stages[stage])))
        rows = [(str(setting.num_seeds(stage)), *(str(setting.stages[stage].get(name, NONE)) for name in columns)) for setting in having]
        labels = [setting.label for setting in having]
        if len(set(rows)) == 1 and len(rows) > 1:
            labels, rows = ["all"], rows[:1]
        return ("setting", "seeds", *columns), [(label, *row) for label, row in zip(labels, rows, strict=True)]


def taken(outcome: Outcome) -> dict[str, str]:
    """The stages that a run took from others, and from where."""
    notes = read_tables(outcome.folder / "run.json", lambda _: None)
    return {note["stage"]: note["taken_from"] for note in notes if "stage" in note and "taken_from" in note}
