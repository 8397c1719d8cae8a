"""Tokenised examples and the steps that both sides take, in files that another machine can use as they are."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import dialogues, models
from benchmarks.cases import Silent, Work, only_stage, packed_steps
from benchmarks.gpu.cells import Cell
from benchmarks.workloads import SEED, WORKLOADS

SPARE = 1.3
"""Rows to draw for each one needed."""
TOKENS_OF_A_DIALOGUE = 1100


def folder_of(cell: Cell) -> Path:
    """Where the work of a cell is; cells with the same objective share it."""
    return cell.home / "prepared" / f"{cell.objective}-{cell.max_length}-{cell.rows_per_step}-{cell.steps}"


def prepare(cell: Cell) -> None:
    """Tokenise and draw the steps, once; and keep the tokenizer beside them. Needs no GPU, but real data."""
    folder = folder_of(cell)
    if folder.is_dir():
        return
    tokenizer = cell.home / "tokenizer"
    if not tokenizer.is_dir():
        shutil.copytree(models.tokenizer_of(cell.home), tokenizer)
    corpus = _corpus(cell)
    steps = _pairs(cell, corpus) if cell.objective == "dpo" else _rows(cell, corpus)
    staging = folder.with_suffix(".part")
    shutil.rmtree(staging, ignore_errors=True)
    shutil.copytree(corpus.folder, staging / "corpus")
    (staging / "steps.json").write_text(json.dumps(steps), "utf-8")
    staging.rename(folder)


def open_work(cell: Cell) -> Work:
    """What was prepared."""
    folder = folder_of(cell)
    steps = json.loads((folder / "steps.json").read_text("utf-8"))
    return Work(folder / "corpus", tuple(tuple(tuple(row) for row in step) for step in steps))


def _corpus(cell: Cell) -> Any:
    from zephyr_kit.protocols import Start
    from zephyr_kit.stage_data import prepare_part

    preset = cell.preset(_data(cell))
    preset["model"]["weights"] = str(cell.home / "tokenizer")
    stage = only_stage(preset)
    task: Any = stage.task
    return prepare_part(task, task.data, stage.model.tokenizer(Start()), Silent(), "data")


def _data(cell: Cell) -> dict[str, Any]:
    """Pairs of UltraFeedback's lengths, or dialogues of UltraChat's, just as many as are needed and few more."""
    if cell.objective == "dpo":
        return WORKLOADS["ultrafeedback"].table(cell.home, cell.steps * cell.rows_per_step)
    count = math.ceil(SPARE * cell.steps * cell.rows_per_step * cell.max_length / TOKENS_OF_A_DIALOGUE)
    (cell.home / "data").mkdir(parents=True, exist_ok=True)
    return {"use": "jsonl", "path": str(dialogues.write(cell.home / "data", count))}


def _pairs(cell: Cell, corpus: Any) -> list[list[tuple[int, ...]]]:
    from zephyr_kit.plan import Plan

    plan = Plan(corpus.lengths, SEED, examples_per_step=cell.rows_per_step, steps=cell.steps)
    return [[(index,) for index in plan.step(number)] for number in range(cell.steps)]


def _rows(cell: Cell, corpus: Any) -> Sequence[Sequence[tuple[int, ...]]]:
    return packed_steps(corpus, cell.steps, num_rows=cell.rows_per_step, length=cell.max_length)
