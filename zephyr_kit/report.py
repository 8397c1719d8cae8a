"""`report.md`: what a run did, in one page."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zephyr_kit.markdown import figure, laws_told, table
from zephyr_kit.preset import Preset
from zephyr_kit.protocols import Evaluation, broken_laws
from zephyr_kit.runs import RunError, write_text
from zephyr_kit.stages import GatherStage, TrainStage

NUM_REASONS_TOLD = 4
LOSSES = ("fates", "failures", "unpaired_reasons", "left_out", "ends")
"""What the ledger of a stage that gathers counts by reason."""


def write_report(preset: Preset, folder: Path, evaluations: Sequence[Evaluation]) -> Path:
    """Write the report of a finished run."""
    lines = [f"# {preset.name}", "", preset.description, ""]
    for stage in preset.stages:
        place = folder / stage.name
        facts = json.loads((place / "done.json").read_text("utf-8"))
        if isinstance(stage.task, TrainStage):
            lines += _trained(stage.name, facts, place, broken_laws(stage.task.objective))
        elif isinstance(stage.task, GatherStage):
            lines += _gathered(stage.name, facts, place)
    for evaluation in evaluations:
        lines += _evaluation(evaluation)
    path = folder / "report.md"
    write_text(path, "\n".join(lines))
    return path


def _gathered(name: str, facts: Mapping[str, Any], folder: Path) -> list[str]:
    """What a stage that gathers has made, what was lost on the way, and how far its judges agree."""
    ledger = _ledger(folder)
    rows = ledger["rows"]
    odd = ", ".join(f"{rows[fate]:,} {fate}" for fate in ("repeated", "removed", "bad"))
    lines = [f"## Stage {name}", "", f"Prompts: {rows['taken']:,} of {rows['read']:,} rows ({odd}). Result: `{folder / 'data'}`.", ""]
    for portion in rows["portions"]:
        lines += _filtered(portion)
    lines += [*table(("figure", "value"), [(key, figure(value)) for key, value in facts.items() if key != "files"]), ""]
    lost = [(key.replace("_", " "), _first_reasons(ledger[key])) for key in LOSSES if ledger.get(key)]
    lines += [*table(("what became of them", "count"), lost), ""] if lost else []
    agreements = folder / "agreement.json"
    found = json.loads(agreements.read_text("utf-8")) if agreements.exists() else []
    told = [tuple(map(figure, one.values())) for one in found]
    lines += [*table(("judges", "cases", "pairs without a tie", "in the same order", "ties", "the same best"), told), ""] if told else []
    return lines


def _trained(name: str, facts: Mapping[str, Any], folder: Path, breaks: Mapping[str, str]) -> list[str]:
    ledger = _ledger(folder)
    odd = ", ".join(f"{ledger[fate]:,} {fate}" for fate in ("cut", "dropped", "removed", "bad"))
    more = f" and {ledger['added']:,} more made of them" if ledger["added"] else ""
    rows = f"{ledger['kept']:,} of {ledger['read']:,} rows{more} ({odd})"
    figures = [(key, figure(value)) for key, value in facts.items() if key != "files"]
    lines = [f"## Stage {name}", "", f"Data: {rows}. Model: `{folder / 'model'}`.", "", *laws_told(breaks)]
    for portion in ledger["portions"]:
        lines += _filtered(portion)
    return [*lines, *table(("figure at the end", "value"), figures), ""]


def _ledger(folder: Path) -> dict[str, Any]:
    data = folder / "data.json"
    if not data.exists():
        raise RunError(f"{data}: is missing, so the report cannot say what became of the rows; the results are not touched by that")
    ledger: dict[str, Any] = json.loads(data.read_text("utf-8"))
    return ledger


def _filtered(portion: Mapping[str, Any]) -> list[str]:
    """What each filter made of a portion's rows."""
    if not portion.get("sieve"):
        return []
    rows = [
        (one["name"], f"{one['seen']:,}", f"{one['removed']:,}", f"{one['changed']:,}", _first_reasons(one["reasons"]))
        for one in portion["sieve"]["filters"]
    ]
    return [f"`{portion['source']}`:", "", *table(("filter", "seen", "removed", "changed", "reasons"), rows), ""]


def _first_reasons(reasons: Mapping[str, int]) -> str:
    return "; ".join(f"{count:,} {reason}" for reason, count in itertools.islice(reasons.items(), NUM_REASONS_TOLD))


def _evaluation(evaluation: Evaluation) -> list[str]:
    head = ("model", *evaluation.columns)
    rows = [(model, *(figure(values.get(name)) for name in evaluation.columns)) for model, values in evaluation.rows.items()]
    meanings = [f"- {name}: {meaning}" for name, meaning in evaluation.columns.items()]
    samples = []
    for sample in evaluation.samples:
        samples += ["", f"> {sample['prompt']}", ""]
        samples += [f"- **{model}**: {reply}" for model, reply in sample.items() if model != "prompt"]
    return [f"## {evaluation.title}", "", *table(head, rows), "", *meanings, *samples, ""]
