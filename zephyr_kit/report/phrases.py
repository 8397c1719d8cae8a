"""What is told of a run, as rows of words: for the page and for the text alike."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean as mean
from typing import Any

from zephyr_kit.facts import Cost, RunFacts, StageFacts
from zephyr_kit.facts.stage import PARTS
from zephyr_kit.protocols import Evaluation
from zephyr_kit.report.views import Measured, as_toml
from zephyr_kit.words import duration, figure, hours, money, operations, share, short, size

Table = tuple[Sequence[str], list[list[str]]]
ROWS = {
    "read": "rows read",
    "added": "added: further examples made of a row",
    "kept": "examples kept",
    "cut": "of these, cut to max_length",
    "dropped": "dropped: longer than max_length",
    "removed": "removed by filters or binarisation",
    "bad": "bad: cannot be trained on",
    "tokens": "tokens",
    "trained": "of these, trained on",
}
REASONS = {
    "reasons": "Why rows were not taken whole",
    "bad_reasons": "Why rows were bad",
    "fates": "What became of the replies",
    "failures": "Why replies failed",
    "unpaired_reasons": "Why prompts gave no pair",
    "left_out": "Why replies were left out",
    "ends": "How dialogues ended",
    "notes": "What sources changed",
}
GATHERED = ("prompts", "paired", "unpaired", "pairs", "replies", "seeds", "dialogues", "lost", "exchanges")
COSTS = ("time", "device-hours", "examples", "tokens", "trained tokens", "operations", "memory", "price")


def sentence(run: RunFacts) -> str:
    """How a run stands."""
    states = [stage.state for stage in run.stages]
    if run.is_done:
        return f"All {len(states)} stages are done"
    told = f"{states.count('done')} of {len(states)} stages are done"
    for stage in run.stages:
        if stage.state in ("failed", "running", "unfinished"):
            return f"{told}, {stage.name} {'is ' if stage.state != 'failed' else 'has '}{stage.state}"
    return told


def headline(run: RunFacts) -> Iterator[tuple[str, str, str]]:
    """The figures of a run as a whole."""
    cost = total([stage.cost for stage in run.stages])
    yield "Time", duration(cost.seconds or cost.step_seconds), "" if cost.seconds else "in optimiser steps"
    yield "Tokens read", short(cost.tokens), "in training"
    yield "Examples seen", short(cost.examples), "in training"
    yield "Operations", operations(cost.flops), "floating-point, in training"
    yield "Memory", size(cost.memory), "at the most"
    if cost.dollars:
        yield "Price", money(cost.dollars), "of answers"


def lineage(stage: StageFacts) -> Iterator[tuple[str, str]]:
    """Where a stage stands in the pipeline: what it does, from what, with what, and what came of it."""
    settings, data = stage.settings, stage.ledgers.get("data", {})
    origin = f"model of {stage.before}" if stage.before else _brief(settings.get("model.weights") or "random weights")
    if stage.kind == "trains":
        yield "trains", f"with {settings.get('objective.use')}{_options(settings)}"
        yield "from", origin
        yield "weights", _weights(settings)
    elif stage.kind == "measures":
        models = dict.fromkeys(model for evaluation in stage.evaluations for model in evaluation.rows)
        yield "measures", ", ".join(models) or "the models of the stages before"
        yield from (("by", evaluation.title) for evaluation in stage.evaluations)
    else:
        yield "gathers" if stage.kind == "gathers" else "distills", "judged replies to prompts" if stage.kind == "gathers" else "dialogues"
        yield "model", origin
    if named := list(_data(settings)):
        yield "data", "; ".join(named)
    if "kept" in data:
        yield "rows", f"{data['kept']:,} of {data['read']:,}"
        yield "tokens", f"{short(data['tokens'])}, {short(data['trained'])} trained"
    if stage.curves.num_steps:
        yield "steps", f"{stage.curves.num_steps:,}"
    if waited := stage.curves.wait_shares:
        yield "waiting", f"{share(mean(waited))} of the ranks' time in steps, for each other: {', '.join(map(share, waited))}"
    for name in ("loss", "held_out/loss"):
        if (value := stage.curves.last(name)) is not None:
                yield name.replace("held_out/loss", "held out"), figure(value)
    yield from ((name, f"{stage.figures[name]:,}") for name in ("prompts", "replies", "pairs", "dialogues") if name in stage.figures)


def _data(settings: Mapping[str, Any]) -> Iterator[str]:
    """The tables of a stage's data: what reads each, and the first thing that it is told."""
    for path, use in settings.items():
        if re.fullmatch(r"(data|prompts|seeds)\[\d+\]\.use", path):
            table = path.removesuffix("use")
            what = next((settings[f"{table}{key}"] for key in ("path", "name", "part") if settings.get(f"{table}{key}")), "")
            yield f"{_brief(what)} ({use})" if what else str(use)


def _brief(place: Any) -> str:
    """Of a path from the root, its last part; a name on the hub as it is."""
    return str(place).rpartition("/")[2] if str(place).startswith("/") else str(place)


def _options(settings: Mapping[str, Any]) -> str:
    """What of an objective is a number."""
    own = {path.removeprefix("objective."): value for path, value in settings.items() if path.startswith("objective.")}
    told = [f"{name} {value:g}" for name, value in own.items() if isinstance(value, (int, float)) and not isinstance(value, bool) and value]
    return f" ({', '.join(told)})" if told else ""


def _weights(settings: Mapping[str, Any]) -> str:
    """Which of them are trained."""
    rank, bits = settings.get("model.lora.rank"), settings.get("model.quantize.bits")
    return f"{f'LoRA of rank {rank}' if rank else 'all'}{f', on {bits} bits' if bits else ''}"


def ledger(stage: StageFacts) -> Table:
    """What became of every row."""
    data = stage.ledgers.get("data", {})
    if "rows" in data:
        rows = {name: value for name, value in data["rows"].items() if isinstance(value, int)}
        counts = {name: data[name] for name in GATHERED if name in data}
        requests = {f"requests: {name}": value for name, value in data.get("requests", {}).items()}
        return ("of a stage that gathers", "count"), [
            [name if name not in rows else f"rows {name}", f"{value:,}"] for name, value in {**rows, **counts, **requests}.items()
        ]
    parts = [part for part in PARTS if part in stage.ledgers]
    named = [[told, *(f"{stage.ledgers[part].get(name, 0):,}" for part in parts)] for name, told in ROWS.items()]
    return ("rows", *(part.replace("_", "-") for part in parts)), named


def filtered(stage: StageFacts) -> list[list[list[str]]]:
    """What each filter made of the rows, for each portion that has filters."""
    data = stage.ledgers.get("data", {})
    portions = (data.get("rows") or data).get("portions", ())
    return [
        [[one["name"], *(f"{one[name]:,}" for name in ("seen", "removed", "changed"))] for one in portion["sieve"]["filters"]]
        for portion in portions
        if portion.get("sieve")
    ]


def reasons(stage: StageFacts) -> list[tuple[str, Mapping[str, int]]]:
    """Counted, under what they are reasons for."""
    data = stage.ledgers.get("data", {})
    whole = {**data, "reasons": (data.get("rows") or data).get("reasons", {})}
    sieved = {}
    for portion in (data.get("rows") or data).get("portions", ()):
        for one in (portion.get("sieve") or {}).get("filters", ()):
            sieved[f"Why `{one['name']}` removed or changed rows"] = one["reasons"]
    return [(told, found) for told, found in {**{told: whole.get(name) for name, told in REASONS.items()}, **sieved}.items() if found]


def agreements(stage: StageFacts) -> list[list[str]]:
    """How far judges agree, a row for each two."""
    return [
        [str(one["judges"]), f"{one['cases']:,}", f"{one['pairs']:,}", *(share(one[name]) for name in ("same_order", "ties", "same_best"))]
        for one in stage.agreements
    ]


def evaluated(evaluation: Evaluation) -> Table:
    """One evaluation."""
    return measures(Measured(evaluation.title, [(0, "", evaluation)], ()))


def measures(measured: Measured) -> Table:
    """A row for each model, with the intervals that there are."""
    columns = list(dict.fromkeys(name for _, _, evaluation in measured.of_runs for name in evaluation.columns))
    rows = []
    for _, run, evaluation in measured.of_runs:
        for model, values in evaluation.rows.items():
            ends = evaluation.intervals.get(model, {})
            cells = [figure(values.get(name)) + _between(ends.get(name)) for name in columns]
            rows.append([f"{run} · {model}" if run else model, *cells])
    return ("model", *columns), rows


def _between(ends: Sequence[float] | None) -> str:
    return f" ({figure(ends[0])} to {figure(ends[1])})" if ends else ""


def costs(run: RunFacts) -> Table:
    """A row for each stage, and one for all."""
    named = [(stage.name, stage.cost) for stage in run.stages]
    return ("stage", *COSTS), [[name, *_cost(cost)] for name, cost in (*named, ("all", total([cost for _, cost in named])))]


def _cost(cost: Cost) -> list[str]:
    return [
        duration(cost.seconds) if cost.seconds or not cost.step_seconds else f"{duration(cost.step_seconds)} in steps",
        hours(cost.device_seconds),
        short(cost.examples),
        short(cost.tokens),
        short(cost.targets),
        operations(cost.flops),
        size(cost.memory),
        money(cost.dollars or None),
    ]


def total(found: Sequence[Cost]) -> Cost:
    """Of several stages: sums of what is known, and the highest memory."""

    def added(name: str) -> Any:
        known = [value for cost in found if (value := getattr(cost, name)) is not None]
        return sum(known) if known else None

    names = ("examples", "tokens", "targets", "flops", "seconds", "device_seconds", "step_seconds", "dollars")
    sums = {name: added(name) for name in names}
    return Cost(**sums, memory=max((cost.memory for cost in found if cost.memory), default=None))


def settings_that_differ(found: Sequence[Any]) -> list[list[str]]:
    """A row for each key."""
    return [[one.path, *map(as_toml, one.values)] for one in found]
