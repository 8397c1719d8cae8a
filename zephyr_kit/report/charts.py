"""Plots of what does not change from step to step: lengths, evaluations, costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from zephyr_kit.facts import Cost, RunFacts
from zephyr_kit.lengths import Lengths
from zephyr_kit.protocols import Evaluation
from zephyr_kit.report.plots import SECONDS_OF_AN_HOUR, Plot
from zephyr_kit.words import duration, figure, operations, short

TOKENS = {"title": {"text": "tokens"}, "rangemode": "tozero"}
MT_BENCH = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
COSTS: Mapping[str, tuple[str, Callable[[Cost], float | None], Callable[[float | None], str]]] = {
    "Device-hours": ("How long devices were held by each stage.", lambda cost: cost.device_seconds, duration),
    "Operations": ("Floating-point operations of training, counted by the plan.", lambda cost: cost.flops, operations),
    "Tokens": ("Tokens that the model read in training.", lambda cost: cost.tokens, short),
    "Examples": ("Examples seen in training, each as often as it was.", lambda cost: cost.examples, short),
}


def length_plots(runs: Sequence[RunFacts], stage: str) -> Iterator[Plot]:
    """How many training examples of a stage are how long, one plot for each part of an example."""
    own = [(number, run, one) for number, run in enumerate(runs) for one in run.stages if one.name == stage]
    found = [(number, run, one.lengths["data"]) for number, run, one in own if "data" in one.lengths]
    for name in dict.fromkeys(lengths.name for _, _, columns in found for lengths in columns):
        traces, rows = [], []
        for number, run, columns in found:
            for lengths in columns:
                if lengths.name == name:
                    label = run.label if len(runs) > 1 else name
                    traces.append(_histogram(label, number, lengths))
                    middle = [f"{lengths.mean:,.1f}", *(f"{value:,}" for value in lengths.quantiles)]
                    rows.append([label, *middle])
        layout = {"barmode": "overlay", "height": 220, "xaxis": TOKENS, "yaxis": {"title": {"text": "examples"}}}
        head = ("tokens", "mean", "5 %", "half", "95 %", "longest")
        yield Plot(f"lengths-{stage}-{name}", name, MEANINGS.get(name, ""), traces, layout, head, rows)


def _histogram(label: str, run: int, lengths: Lengths) -> dict[str, Any]:
    first = [int(bar.label.partition("–")[0].replace(",", "")) for bar in lengths.bars]
    width = first[1] - first[0] if len(first) > 1 else int(lengths.bars[0].label.partition("–")[2].replace(",", "")) + 1
    shape = {"x": first, "y": [bar.count for bar in lengths.bars], "offset": 0, "width": width, "opacity": 0.75}
    return {"type": "bar", "name": label, "hovertext": [bar.label for bar in lengths.bars], **shape, "meta": {"run": run, "series": 0}}


MEANINGS = {
    "whole": "the prompt with the longest completion: what `max_length` limits",
    "trained": "tokens that the loss is taken over",
}


def is_of_categories(evaluation: Evaluation) -> bool:
    """Whether its columns are categories of one measure, so that they make a radar."""
    columns = [name.casefold() for name in evaluation.columns]
    return len(columns) > 2 and ("categor" in evaluation.title.casefold() or sum(name in columns for name in MT_BENCH) > 2)


def radar(evaluations: Sequence[tuple[int, str, Evaluation]], id: str) -> Iterator[Plot]:  # noqa: A002  as HTML calls it
    """An evaluation by categories, of some runs: their number, what tells each from others, and what it found; none without a value."""
    first = evaluations[0][2]
    names = list(first.columns)
    traces = []
    for number, run, evaluation in evaluations:
        for series, (model, values) in enumerate(evaluation.rows.items()):
            around = [values.get(name) for name in (*names, names[0])]
            meta = {"run": number, "series": series}
            label = f"{run} · {model}" if run else model
            traces.append({"type": "scatterpolar", "name": label, "r": around, "theta": [*names, names[0]], "fill": "toself", "meta": meta})
    if any(value is not None for trace in traces for value in trace["r"]):
        yield Plot(id, first.title, "The further out, the better in that category.", traces)


def column_plots(evaluations: Sequence[tuple[int, str, Evaluation]], id: str) -> Iterator[Plot]:  # noqa: A002  as HTML calls it
    """One plot for each measure of an evaluation but counts: a point for each model, with its interval if it has one."""
    columns = {name: meaning for _, _, evaluation in evaluations for name, meaning in evaluation.columns.items()}
    for place, (name, meaning) in enumerate(columns.items()):
        if all(_counts(evaluation, name) for _, _, evaluation in evaluations):
            continue
        traces = [_points(number, run, evaluation, name) for number, run, evaluation in evaluations]
        models = dict.fromkeys(model for trace in traces for model in trace["y"])
        height = 70 + (34 if len(traces) == 1 else 14 + 16 * len(traces)) * len(models)
        ends = [value + error for trace in traces for value, error in _reach(trace)]
        room = 0.15 * ((max(ends) - min(ends)) or abs(ends[0]) or 1.0) if ends else 0.0
        layout = {
            "height": height,
            "scattermode": "group",
            "showlegend": False,
            "xaxis": {"range": [min(ends) - room, max(ends) + room * min(2, len(traces))], "nticks": 5} if ends else {},
            "yaxis": {"range": [len(models) - 0.5, -0.8], "type": "category"},
        }
        if models:
            yield Plot(f"{id}-{place}", name, meaning, traces, layout)


def _counts(evaluation: Evaluation, name: str) -> bool:
    """Whether a column counts something rather than measures it: whole numbers, without an interval."""
    whole = all(values.get(name) is None or isinstance(values[name], int) for values in evaluation.rows.values())
    return whole and not any(name in ends for ends in evaluation.intervals.values())


def _reach(trace: Mapping[str, Any]) -> Iterator[tuple[float, float]]:
    """Each value, with how far its interval goes in either direction."""
    spread = trace["error_x"]
    for value, up, down in zip(trace["x"], spread["array"], spread["arrayminus"], strict=True):
        yield from ((value, up), (value, -down))


def _points(number: int, run: str, evaluation: Evaluation, name: str) -> dict[str, Any]:
    known = {model: value for model, values in evaluation.rows.items() if (value := values.get(name)) is not None}
    ends = [evaluation.intervals.get(model, {}).get(name, (value, value)) for model, value in known.items()]
    spread = {
        "type": "data",
        "symmetric": False,
        "array": [high - value for (_, high), value in zip(ends, known.values(), strict=True)],
        "arrayminus": [value - low for (low, _), value in zip(ends, known.values(), strict=True)],
        "visible": name in {column for columns in evaluation.intervals.values() for column in columns},
    }
    return {
        "type": "scatter",
        "mode": "markers+text",
        "name": run or name,
        "x": list(known.values()),
        "y": list(known),
        "orientation": "h",
        "offsetgroup": str(number),
        "text": [figure(value) for value in known.values()],
        "textposition": "middle right" if run else "top center",
        "cliponaxis": False,
        "error_x": spread,
        "meta": {"run": number, "series": 0},
    }


def cost_plots(runs: Sequence[RunFacts]) -> Iterator[Plot]:
    """A bar for each run, in parts for its stages, of each thing that costs."""
    stages = list(dict.fromkeys(stage.name for run in runs for stage in run.stages))
    for title, (meaning, measure, told) in COSTS.items():
        found = {(run.label, stage.name): measure(stage.cost) for run in runs for stage in run.stages}
        if any(found.values()):
            factor = SECONDS_OF_AN_HOUR if title == "Device-hours" else 1
            bars = (_bars(name, [found.get((run.label, name)) for run in runs], runs, place, factor) for place, name in enumerate(stages))
            traces = [trace for trace in bars if any(trace["x"])]
            layout = {"barmode": "stack", "height": 120 + 42 * len(runs), "yaxis": {"autorange": "reversed", "type": "category"}}
            rows = [[run.label, *(told(found.get((run.label, name))) for name in stages)] for run in runs]
            yield Plot(f"cost-{title.lower()}", title, meaning, traces, layout, ("run", *stages), rows)


def _bars(stage: str, values: Sequence[float | None], runs: Sequence[RunFacts], place: int, factor: float) -> dict[str, Any]:
    x = [None if value is None else value / factor for value in values]
    return {"type": "bar", "orientation": "h", "name": stage, "x": x, "y": [run.label for run in runs], "meta": {"series": place}}
