"""Curves of training: one function for each kind of plot, as traces that plotly draws.

A trace's `meta` says what the page decides: `axis`, whose columns may stand on the x-axis;
`run` and `series`, from which its colour and dash follow; `means`, what the series is called where there are
several; `noisy`, whether it may be smoothed;
`band`, that it is an edge of one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from zephyr_kit.facts import Curves, RunFacts, StageFacts
from zephyr_kit.facts.curves import Column
from zephyr_kit.words import figure

SECONDS_OF_AN_HOUR = 3600
MARKS = (("at the start", 0.0), ("after ¼", 0.25), ("after ½", 0.5), ("after ¾", 0.75), ("at the end", 1.0))


@dataclass(frozen=True)
class Plot:
    """A plot, and what says the same in words."""

    id: str
    title: str
    meaning: str
    """What is to be seen in it, for somebody who has never seen one."""
    traces: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any] = field(default_factory=dict)
    head: Sequence[str] = ()
    """Of a table of the same figures."""
    rows: Sequence[Sequence[str]] = ()

    @property
    def told(self) -> str:
        """In a sentence, for those who do not see it."""
        return f"{self.title}. " + "; ".join(f"{row[0]}: {row[1]} {self.head[1]}, {row[-1]} {self.head[-1]}" for row in self.rows)


@dataclass(frozen=True)
class Group:
    """Metrics that are drawn together."""

    title: str
    names: tuple[str, ...]
    meaning: str
    scale: float = 1.0
    """What a figure is divided by."""
    layout: Mapping[str, Any] = field(default_factory=dict)
    noisy: bool = True


GROUPS = (
    Group("Loss", ("loss",), "What training makes small. Held-out rows are never trained on: once their loss rises, the model memorises."),
    Group(
        "Reward margin",
        ("reward/margin",),
        "How much more the model has come to favour the chosen answer over the rejected one, compared with the model it started from.",
    ),
    Group(
        "Reward accuracy",
        ("reward/accuracy",),
        "The share of pairs where it favours the chosen answer more than the model it started from did. A coin gives 0.5.",
        layout={"yaxis": {"range": [0, 1.02]}},
    ),
    Group(
        "Rewards",
        ("reward/chosen", "reward/rejected"),
        "β times how much likelier an answer has become. The two should part; both may fall.",
    ),
    Group(
        "Log-probabilities",
        ("logp/chosen", "logp/rejected"),
        "How likely the model finds whole answers. If chosen ones fall far, it forgets how to write them: less β or learning rate helps.",
    ),
    Group("Gradient norm", ("gradient_norm",), "How strongly a step pulls, before clipping. Spikes that do not go away mean trouble."),
    Group(
        "Learning rate",
        ("learning_rate",),
        "How large the steps are: warmed up, then lowered by the schedule.",
        layout={"yaxis": {"exponentformat": "power"}},
        noisy=False,
    ),
    Group("Throughput", ("tokens_per_second",), "Tokens read in a second of training. Dips: something else used the machine."),
    Group("Waiting", ("wait_share",), "The part of the ranks' time in steps that they waited for the one that took longest."),
    Group("Memory", ("memory",), "GiB that the process holds of its device. It should stay level.", scale=2**30, noisy=False),
)
BESIDE = ("step", "epoch", "tokens", "seconds")


def curve_plots(runs: Sequence[RunFacts], stage: str) -> Iterator[Plot]:
    """All curves of a stage, of every run that has it."""
    found = [(number, run, one) for number, run in enumerate(runs) for one in run.stages if one.name == stage and one.curves.steps]
    names = dict.fromkeys(name for _, _, one in found for name in (*one.curves.steps, *one.curves.held_out) if name not in BESIDE)
    known = [name for group in GROUPS for name in group.names]
    others = [Group(name, (name,), "A metric of the objective.") for name in names if name not in known]
    for group in (*GROUPS, *others):
        if any(name in names for name in group.names):
            yield _curves(f"{stage}-{group.title}", group, found, several=len(runs) > 1)


def axes(runs: Sequence[RunFacts]) -> dict[str, dict[str, list[float | None]]]:
    """What may stand on the x-axis, for the curves of each stage of each run, and for their held-out data."""
    found = {}
    for number, run in enumerate(runs):
        for stage in run.stages:
            if stage.curves.steps:
                found[_axis(number, stage)] = columns = _spent(stage)
                found[f"{_axis(number, stage)}-held_out"] = _at(columns, stage.curves.held_out.get("step", ()))
    return found


def _spent(stage: StageFacts) -> dict[str, list[float | None]]:
    """Up to each step: steps, examples, tokens, operations, hours."""
    columns, cost = stage.curves.steps, stage.cost
    tokens = columns["tokens"]
    rate = cost.flops / cost.tokens if cost.flops and cost.tokens else None
    each = cost.examples / stage.curves.last("epoch") if cost.examples and stage.curves.last("epoch") else None  # type: ignore[operator]
    spent: dict[str, list[float | None]] = {
        "step": list(columns["step"]),
        "examples": [value and each and value * each for value in columns.get("epoch", [])],
        "tokens": list(tokens),
        "flops": [value and rate and value * rate for value in tokens],
        "hours": [value and value / SECONDS_OF_AN_HOUR for value in columns["seconds"]],
    }
    return {name: rounded(column) for name, column in spent.items() if any(column)}


def _at(columns: Mapping[str, Sequence[float | None]], steps: Column) -> dict[str, list[float | None]]:
    """The same at these steps, each found at the nearest one before it that has a place on the axis."""
    known = columns["step"]
    places = [max((place for place, step in enumerate(known) if (step or 0) <= (wanted or 0)), default=0) for wanted in steps]
    return {name: [column[place] for place in places] for name, column in columns.items()} | {"step": list(steps)}


def _curves(id: str, group: Group, found: Sequence[tuple[int, RunFacts, StageFacts]], *, several: bool) -> Plot:  # noqa: A002  as HTML calls it
    traces: list[dict[str, Any]] = []
    rows: list[list[str]] = []
    for number, run, stage in found:
        for series, name in enumerate(group.names):
            for part, columns in (("training", stage.curves.steps), ("held-out", stage.curves.held_out)):
                if any(value is not None for value in columns.get(name, ())):
                    values = rounded([None if value is None else value / group.scale for value in columns[name]])
                    label = _label(run.label if several else "", name if len(group.names) > 1 else "", part, stage.curves)
                    means = name.rpartition("/")[2] if len(group.names) > 1 else ""
                    traces.append(_trace(label, values, number, stage, series=series, means=means, part=part, noisy=group.noisy))
                    rows.append([label, *_milestones(values)])
    head = ("curve", *(mark for mark, _ in MARKS[:1]), "lowest", "highest", *(mark for mark, _ in MARKS[1:]))
    return Plot(id.replace(" ", "-").replace("/", "-").lower(), group.title, group.meaning, traces, group.layout, head, rows)


def _label(run: str, name: str, part: str, curves: Curves) -> str:
    """What tells a curve from the others of its plot."""
    part = part if curves.held_out or part != "training" else ""
    return " · ".join(filter(None, (run, name.rpartition("/")[2], part))) or "training"


def _trace(
    label: str, values: Sequence[float | None], run: int, stage: StageFacts, *, series: int, means: str, part: str, noisy: bool
) -> dict[str, Any]:
    held_out = part == "held-out"
    axis = _axis(run, stage) + ("-held_out" if held_out else "")
    meta = {"axis": axis, "run": run, "series": series, "means": means, "noisy": noisy and not held_out, "held_out": held_out}
    return {"type": "scatter", "mode": "lines+markers" if held_out else "lines", "name": label, "y": list(values), "meta": meta}


def _milestones(values: Sequence[float | None]) -> list[str]:
    """For the table: at the start, the lowest and highest, and on the way to the end."""
    finite = [value for value in values if value is not None]
    first, *rest = (figure(finite[round(share * (len(finite) - 1))]) for _, share in MARKS)
    return [first, figure(min(finite)), figure(max(finite)), *rest]


def _axis(run: int, stage: StageFacts) -> str:
    return f"{run}-{stage.name}"


def rounded(values: Sequence[float | None]) -> list[float | None]:
    """To five digits, which is more than is seen, and takes less room on the page."""
    return [value if value is None or isinstance(value, int) else float(f"{value:.5g}") for value in values]
