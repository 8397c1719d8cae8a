"""Plots of a sweep: figures with their spread, and curves as a mean with a band."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zephyr_kit.facts import RunFacts
from zephyr_kit.facts.curves import Column
from zephyr_kit.report.plots import BESIDE, GROUPS, Group, Plot, rounded
from zephyr_kit.sweep.spread import Setting, Spread, shown
from zephyr_kit.words import figure

BAND = {"mode": "lines", "hoverinfo": "skip", "showlegend": False}
ALIKE = 1e-9
"""Figures that differ by less, relatively, differ by rounding alone."""
Columns = Mapping[str, Column]
Curve = Sequence[tuple[float, float]]
"""Mean and deviation over the runs, at the steps that all have."""
Means = Mapping[str, Curve]
"""For each column."""


@dataclass(frozen=True)
class Drawn:
    """Plots, and what stands on the x-axes of the curves among them, as the page of a report has both."""

    plots: Sequence[Plot]
    axes: Mapping[str, Columns]


def figure_plots(settings: Sequence[Setting], stage: str) -> Iterator[Plot]:
    """One for each figure that a stage ended with: a point for each setting, with its spread over seeds."""
    having = [(number, setting.label, setting.stages[stage]) for number, setting in enumerate(settings) if stage in setting.stages]
    for place, name in enumerate(dict.fromkeys(name for _, _, figures in having for name in shown(figures))):
        found = [(number, label, figures[name]) for number, label, figures in having if name in figures]
        rows = [[label, str(spread), str(spread.count)] for _, label, spread in found]
        traces = [_point(number, label, spread) for number, label, spread in found]
        layout = _room([spread for _, _, spread in found])
        yield Plot(f"figure-{stage}-{place}", name, "", traces, layout, ("setting", "mean ± deviation", "seeds"), rows)


def curve_plots(settings: Sequence[Setting], stage: str, runs: Mapping[Path, RunFacts]) -> Drawn:
    """The curves of a stage: for each setting the mean over its seeds, in a band as wide as their standard deviation.

    Of `runs`, by their folders, all lines were read: of some alone, few steps might be those of all.
    """
    means = [_means([runs[one.folder] for one in setting.outcomes if one.folder in runs], stage) for setting in settings]
    names = dict.fromkeys(name for steps, held_out in means for name in (*steps, *held_out) if name not in BESIDE)
    known = [name for group in GROUPS for name in group.names]
    groups = (*GROUPS, *(Group(name, (name,), "A metric of the objective.") for name in names if name not in known))
    found = [(group, name) for group in groups for name in group.names if name in names]
    return Drawn(
        [_curves(f"curve-{stage}-{place}", group, name, settings, stage, means) for place, (group, name) in enumerate(found)],
        {
            _axis(number, stage, part): {"step": [step for step, _ in columns.get("step", ())]}
            for number, parts in enumerate(means)
            for part, columns in enumerate(parts)
        },
    )


def _curves(
    id: str, group: Group, name: str, settings: Sequence[Setting], stage: str, means: Sequence[tuple[Means, Means]]  # noqa: A002
) -> Plot:
    title = group.title if len(group.names) == 1 else name
    traces = [
        trace
        for number, (setting, parts) in enumerate(zip(settings, means, strict=True))
        for trace in _traces(number, setting.label, stage, [_scaled(columns.get(name, ()), group.scale) for columns in parts])
    ]
    ends = [(trace["name"], [value for value in trace["y"] if value is not None]) for trace in traces if "band" not in trace["meta"]]
    rows = [[label, figure(values[0]), figure(values[-1])] for label, values in ends if values]
    return Plot(id, title, group.meaning, traces, group.layout, ("curve", "at the start", "at the end"), rows)


def _room(spreads: Sequence[Spread]) -> dict[str, Any]:
    """For every bar, and for what is written above it."""
    ends = [spread.mean + sign * (spread.deviation or 0.0) for spread in spreads for sign in (-1, 1)]
    span, size = max(ends) - min(ends), max(map(abs, ends))
    beside = 0.2 * (span if span > ALIKE * size else size or 1.0)
    across = {"range": [min(ends) - beside, max(ends) + beside], "nticks": 5}
    down = {"range": [len(spreads) - 0.5, -0.8], "type": "category"}
    return {"height": 70 + 34 * len(spreads), "showlegend": False, "xaxis": across, "yaxis": down}


def _point(number: int, label: str, spread: Spread) -> dict[str, Any]:
    bars = {"type": "data", "array": [spread.deviation or 0.0], "visible": spread.deviation is not None}
    place = {"x": [spread.mean], "y": [label], "error_x": bars, "meta": {"run": number, "series": 0}}
    return {"type": "scatter", "mode": "markers+text", "name": label, "text": [str(spread)], "textposition": "top center", **place}


def _means(runs: Sequence[RunFacts], stage: str) -> tuple[Means, Means]:
    """Of the steps, and of the looks at held-out data."""
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


def _scaled(column: Curve, scale: float) -> Curve:
    return [(mean / scale, deviation / scale) for mean, deviation in column]


def _traces(number: int, setting: str, stage: str, parts: Sequence[Curve]) -> Iterator[dict[str, Any]]:
    """Of the steps, and of the looks at held-out data: the mean, and its band before it, so that the line lies upon it."""
    for part, curve in enumerate(parts):
        label = f"{setting}{' · held-out' if part else ''}"
        about = {"axis": _axis(number, stage, part), "run": number, "series": 0, "noisy": False, "held_out": bool(part)}
        trace = {"type": "scatter", "name": label, "meta": about}
        low, high = (_written([mean + sign * deviation for mean, deviation in curve]) for sign in (-1, 1))
        if any(deviation for _, deviation in curve):
            yield {**trace, **BAND, "meta": {**about, "band": True}, "y": low}
            yield {**trace, **BAND, "meta": {**about, "band": True}, "y": high, "fill": "tonexty"}
        if curve:
            yield {**trace, "mode": "lines+markers" if part else "lines", "y": _written([mean for mean, _ in curve])}


def _axis(number: int, stage: str, part: int) -> str:
    return f"{number}-{stage}{'-held_out' if part else ''}"


def _written(values: Sequence[float]) -> list[float | None]:
    """JSON has no NaN."""
    return rounded([None if value != value else value for value in values])  # noqa: PLR0124  only NaN is not itself

