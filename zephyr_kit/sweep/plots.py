"""Plots of a sweep: figures with their spread, and curves as a mean with a band."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from zephyr_kit.facts import read_run
from zephyr_kit.facts.curves import Column
from zephyr_kit.markdown import figure
from zephyr_kit.report.plots import BESIDE, GROUPS, Group, Plot, rounded
from zephyr_kit.sweep.spread import Setting, Spread, shown

NUM_POINTS = 300
"""Of a curve, at the most."""
BAND = {"type": "scatter", "mode": "none", "hoverinfo": "skip", "showlegend": False, "opacity": 0.35}
Columns = Mapping[str, Column]


@dataclass(frozen=True)
class Drawn:
    """Plots, and what stands on the x-axes of the curves among them, as the page of a report has both."""

    plots: list[Plot] = field(default_factory=list)
    axes: dict[str, Mapping[str, Column]] = field(default_factory=dict)


def figure_plots(settings: Sequence[Setting], stage: str) -> Iterator[Plot]:
    """One for each figure that a stage ended with: a point for each setting, with its spread over seeds."""
    having = [(number, setting.label, setting.stages[stage]) for number, setting in enumerate(settings) if stage in setting.stages]
    for place, name in enumerate(dict.fromkeys(name for _, _, figures in having for name in shown(figures))):
        found = [(number, label, figures[name]) for number, label, figures in having if name in figures]
        layout = {"height": 70 + 34 * len(found), "yaxis": {"type": "category", "autorange": "reversed"}, "showlegend": False}
        rows = [[label, str(spread), str(spread.count)] for _, label, spread in found]
        traces = [_point(number, label, spread) for number, label, spread in found]
        yield Plot(f"figure-{stage}-{place}", name, "", traces, layout, ("setting", "mean ± deviation", "seeds"), rows)


def curve_plots(settings: Sequence[Setting], stage: str) -> Drawn:
    """The curves of a stage: for each setting the mean over its seeds, in a band as wide as their standard deviation."""
    drawn, means = Drawn(), [_means(setting, stage) for setting in settings]
    names = dict.fromkeys(name for steps, held_out in means for name in (*steps, *held_out) if name not in BESIDE)
    known = [name for group in GROUPS for name in group.names]
    for group in (*GROUPS, *(Group(name, (name,), "A metric of the objective.") for name in names if name not in known)):
        for name in (name for name in group.names if name in names):
            traces = [trace for number, setting in enumerate(settings) for trace in _traces(number, setting, stage, name, means[number])]
            title = group.title if len(group.names) == 1 else name
            rows = [[trace["name"], *ends] for trace in traces if "name" in trace and (ends := _ends(trace["y"]))]
            head = ("curve", "at the start", "at the end")
            drawn.plots.append(Plot(f"curve-{stage}-{len(drawn.plots)}", title, group.meaning, traces, group.layout, head, rows))
    for number, parts in enumerate(means):
        for part, columns in enumerate(parts):
            drawn.axes[_axis(number, stage, part)] = {"step": [step for step, _ in columns.get("step", ())]}
    return drawn


def _point(number: int, label: str, spread: Spread) -> dict[str, Any]:
    bars = {"type": "data", "array": [spread.deviation or 0.0], "visible": spread.deviation is not None}
    place = {"x": [spread.mean], "y": [label], "error_x": bars, "meta": {"run": number, "series": 0}}
    return {"type": "scatter", "mode": "markers+text", "name": label, "text": [str(spread)], "textposition": "top center", **place}


Means = Mapping[str, Sequence[tuple[float, float]]]
"""For each column, mean and deviation over the runs, at the steps that all have."""


def _means(setting: Setting, stage: str) -> tuple[Means, Means]:
    """Of the steps, and of the looks at held-out data."""
    runs = [read_run(outcome.folder, most=NUM_POINTS, whole=False) for outcome in setting.outcomes if outcome.state == "finished"]
    curves = [one.curves for run in runs for one in run.stages if one.name == stage and one.curves.steps]
    return _pooled([one.steps for one in curves]), _pooled([one.held_out for one in curves])


def _pooled(runs: Sequence[Columns]) -> Means:
    if not runs or any("step" not in columns for columns in runs):
        return {}
    lines = [{step: place for place, step in enumerate(columns["step"])} for columns in runs]
    steps = [step for step in lines[0] if all(step in known for known in lines)]
    pooled = {}
    for name in (name for name in runs[0] if all(name in columns for columns in runs)):
        values = [[columns[name][known[step]] for columns, known in zip(runs, lines, strict=True)] for step in steps]
        pooled[name] = [_mean([value for value in at_step if value is not None]) for at_step in values]
    return pooled


def _mean(values: Sequence[float]) -> tuple[float, float]:
    if not values:
        return float("nan"), 0.0
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def _traces(number: int, setting: Setting, stage: str, name: str, parts: tuple[Means, Means]) -> Iterator[dict[str, Any]]:
    for part, columns in enumerate(parts):
        if name not in columns:
            continue
        meta = {"axis": _axis(number, stage, part), "run": number, "series": 0, "noisy": False, "held_out": bool(part)}
        low, high = ([mean + sign * deviation for mean, deviation in columns[name]] for sign in (-1, 1))
        if any(deviation for _, deviation in columns[name]):
            yield {**BAND, "y": _written(low), "meta": meta}
            yield {**BAND, "y": _written(high), "fill": "tonexty", "meta": meta}
        label = f"{setting.label}{' · held-out' if part else ''}"
        mode = "lines+markers" if part else "lines"
        yield {"type": "scatter", "mode": mode, "name": label, "y": _written([mean for mean, _ in columns[name]]), "meta": meta}


def _axis(number: int, stage: str, part: int) -> str:
    return f"{number}-{stage}{'-held_out' if part else ''}"


def _written(values: Sequence[float]) -> list[float | None]:
    """JSON has no NaN."""
    return rounded([None if value != value else value for value in values])  # noqa: PLR0124  only NaN is not itself


def _ends(values: Sequence[float | None]) -> list[str]:
    known = [value for value in values if value is not None]
    return [figure(known[0]), figure(known[-1])] if known else []
