"""What the page shows of runs, put in order for its template."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from zephyr_kit.facts import Difference, RunFacts, StageFacts, differing
from zephyr_kit.protocols import Evaluation
from zephyr_kit.report.charts import column_plots, cost_plots, is_of_categories, length_plots, radar
from zephyr_kit.report.plots import Plot, axes, curve_plots


@dataclass(frozen=True)
class Measured:
    """Evaluations of one title, of every run that has one."""

    title: str
    of_runs: Sequence[tuple[int, str, Evaluation]]
    """The run's number, what tells it from others (nothing if there are none), and what was found."""
    plots: Sequence[Plot]

    @property
    def unplotted(self) -> dict[str, str]:
        """What those columns mean that no plot is of."""
        plotted = [plot.title for plot in self.plots]
        columns = {name: meaning for _, _, one in self.of_runs for name, meaning in one.columns.items()}
        return {name: meaning for name, meaning in columns.items() if meaning and name not in plotted}


@dataclass(frozen=True)
class Answer:
    """One prompt, with the reply of every model of every run."""

    prompt: str
    replies: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class View:
    """All that the page shows."""

    runs: Sequence[RunFacts]

    @property
    def title(self) -> str:
        """Of the page."""
        return self.runs[0].name if len(self.runs) == 1 else " · ".join(run.label for run in self.runs)

    @property
    def labels(self) -> list[str]:
        """What tells the runs from each other."""
        return [run.label for run in self.runs]

    @property
    def versions(self) -> list[list[str]]:
        """Of each package, what each run was last worked on with."""
        newest = [next((one.packages for stage in reversed(run.stages) for one in reversed(stage.sessions)), {}) for run in self.runs]
        names = dict.fromkeys(name for packages in newest for name in packages)
        return [[name, *(packages.get(name) or "–" for packages in newest)] for name in names]

    @cached_property
    def curves(self) -> dict[str, list[Plot]]:
        """Of each stage that trains."""
        return {name: plots for name in self._stages if (plots := list(curve_plots(self.runs, name)))}

    @cached_property
    def fed(self) -> dict[str, list[tuple[int, RunFacts, StageFacts]]]:
        """The stages that have read data, by name, of every run."""
        found = [(number, run, stage) for number, run in enumerate(self.runs) for stage in run.stages if stage.ledgers]
        return {name: [each for each in found if each[2].name == name] for name in dict.fromkeys(each[2].name for each in found)}

    @cached_property
    def lengths(self) -> dict[str, list[Plot]]:
        """Histograms of each stage, none of one that has not noted its lengths."""
        return {name: list(length_plots(self.runs, name)) for name in self._stages}

    @cached_property
    def measured(self) -> list[Measured]:
        """Every evaluation."""
        return list(self._measured())

    @cached_property
    def costs(self) -> list[Plot]:
        """What stages have cost."""
        return list(cost_plots(self.runs))

    @property
    def plots(self) -> list[Plot]:
        """Every plot of the page."""
        groups = (*self.curves.values(), *self.lengths.values(), *(one.plots for one in self.measured), self.costs)
        return [plot for group in groups for plot in group]

    @cached_property
    def answers(self) -> dict[str, list[Answer]]:
        """By the title of their evaluation: a prompt of it once, whichever runs have been asked."""
        found: dict[str, dict[tuple[str, int], list[tuple[str, str]]]] = {}
        for run in self.runs:
            for evaluation in run.evaluations:
                seen: Counter[str] = Counter()
                for sample in evaluation.samples:
                    prompt = sample.get("prompt", "")
                    named = [(self._of(run, model), reply) for model, reply in sample.items() if model != "prompt"]
                    found.setdefault(evaluation.title, {}).setdefault((prompt, seen[prompt]), []).extend(named)
                    seen[prompt] += 1
        return {title: [Answer(prompt, replies) for (prompt, _), replies in own.items()] for title, own in found.items()}

    @cached_property
    def differences(self) -> list[Difference]:
        """Where the presets of several runs differ."""
        return [] if len(self.runs) == 1 else list(differing(self.runs))

    def for_page(self) -> dict[str, Any]:
        """What the page's script draws."""
        plots = {plot.id: {"traces": plot.traces, "layout": plot.layout} for plot in self.plots}
        return {"runs": self.labels, "axes": axes(self.runs), "plots": plots}

    @property
    def _stages(self) -> list[str]:
        return list(dict.fromkeys(stage.name for run in self.runs for stage in run.stages))

    def _of(self, run: RunFacts, name: str) -> str:
        return name if len(self.runs) == 1 else f"{run.label} · {name}"

    def _measured(self) -> Iterator[Measured]:
        titles = dict.fromkeys(evaluation.title for run in self.runs for evaluation in run.evaluations)
        for place, title in enumerate(titles):
            own = [
                (number, "" if len(self.runs) == 1 else run.label, evaluation)
                for number, run in enumerate(self.runs)
                for evaluation in run.evaluations
                if evaluation.title == title
            ]
            draw = radar if is_of_categories(own[0][2]) else column_plots
            yield Measured(title, own, list(draw(own, f"measure-{place}")))


def as_toml(value: Any) -> str:
    """A setting as a preset would have it; a dash where there is none."""
    return "–" if value is None else json.dumps(value, ensure_ascii=False)
