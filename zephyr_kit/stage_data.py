"""The data of a stage that trains: tokenised, and refused if it is not what it must be."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zephyr_kit import ZkitError
from zephyr_kit.admission import Door
from zephyr_kit.cache import cache_folder
from zephyr_kit.corpus import Corpus, DataError, corpus_key, is_prepared, prepare, refuse_bad_rows
from zephyr_kit.first_look import look_over
from zephyr_kit.gate import refuse
from zephyr_kit.inspection import Inspection
from zephyr_kit.observe import Narrator
from zephyr_kit.portion import Portion
from zephyr_kit.preset import Stage
from zephyr_kit.protocols import Start, Tokenizer, needs_ratings
from zephyr_kit.stages import TrainStage


def check_data(stage: Stage, task: TrainStage, start: Start, narrator: Narrator, folder: Path) -> Corpus:
    """Tokenise a stage's data; if too many rows are bad, refuse it, and leave the list of them in `folder`. Gives its `data`."""
    problem = length_problem(stage, task, start)
    if problem:
        raise ZkitError(problem)
    tokenizer = stage.model.tokenizer(start)
    found: dict[str, Corpus] = {}
    for name, portions in (("data", task.data), ("held_out", task.held_out)):
        if portions:
            quarantine = folder / f"{stage.name}.{name}.quarantine.jsonl"
            where = f"stages.{stage.name}.{name}"
            if not is_prepared(_cache() / corpus_key(portions, tokenizer, door_of(task))):
                with narrator.track(f"looking over {name} of {stage.name}") as advance:
                    look_over(portions, door_of(task), allowed=task.bad_rows, name=where, quarantine=quarantine, on_rows=advance)
            found[name] = corpus = prepare_part(task, portions, tokenizer, narrator, f"{name} of {stage.name}")
            try:
                refuse_bad_rows(corpus, allowed=task.bad_rows, name=where, quarantine=quarantine)
            except DataError:
                list_quarantined(corpus, quarantine)
                raise
            quarantine.unlink(missing_ok=True)
            if name == "data":
                listing = folder / f"{stage.name}.data.gate.jsonl"
                refuse(task.gate, Inspection(corpus, tokenizer, portions), name=f"stages.{stage.name}.data", listing=listing)
    return found["data"]


def length_problem(stage: Stage, task: TrainStage, start: Start) -> str:
    """Whether the stage asks for more positions than the model has; empty if not."""
    limit = stage.model.max_length(start)
    if limit is None or task.max_length <= limit:
        return ""
    return f"[stages.{stage.name}] `max_length` = {task.max_length}: the model has {limit} positions; set no more than that"


def prepare_part(task: TrainStage, portions: Sequence[Portion], tokenizer: Tokenizer, narrator: Narrator, label: str) -> Corpus:
    """One of the stage's parts, `data` or `held_out`, as a corpus."""
    return prepare(portions, tokenizer, door_of(task), cache=_cache(), track=lambda part: narrator.track(f"{part} {label}"))


def list_quarantined(corpus: Corpus, path: Path) -> None:
    """Write down the rows that were not taken whole, as JSON lines."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in corpus.quarantined())


def door_of(task: TrainStage) -> Door:
    """What an example of the stage must satisfy."""
    return Door(task.objective.completions, task.max_length, task.too_long, needs_ratings(task.objective))


def _cache() -> Path:
    return cache_folder("corpora")


def summary(name: str, ledger: Mapping[str, Any], quarantine: Path) -> str:
    """What became of the rows, in a line."""
    more = f" and {ledger['added']:,} more made of them" if ledger["added"] else ""
    rows = f"{ledger['kept']:,} of {ledger['read']:,} rows{more}"
    text = f"{name}: {rows}, {ledger['tokens']:,} tokens, {ledger['trained']:,} of them trained"
    odd = [f"{count:,} {reason}" for reason, count in ledger["reasons"].items()]
    odd += [f"{count:,} completions left out: {reason}" for reason, count in ledger["left_out"].items()]
    odd += [f"{count:,} x {note}" for note, count in ledger["notes"].items()]
    return text if not odd else f"{text}; {'; '.join(odd[:4])}{' …' if len(odd) > 4 else ''} (all in {quarantine})"
