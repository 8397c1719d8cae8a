"""What a smoke run is asked, in the formats of the benchmarks, and who judges it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zephyr_kit.protocols import Bench, Case, Failure, Judgement
from zephyr_kit.records import write_text

if TYPE_CHECKING:
    import torch

QUESTIONS = (
    ("writing", ("Write a line about the sea.", "Write it again, about a river.")),
    ("math", ("How much is two and three?", "And twice as much?")),
    ("reasoning", ("Anna is older than Ben. Who is younger?", "Who is older?")),
    ("stem", ("Why is the sky blue?", "And why is it red in the evening?")),
)
TASK = "smoke_choice"
TASK_FILE = """task: {task}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {place}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: right
"""


def write_questions(folder: Path) -> Path:
    """A `question.jsonl` of four questions with references."""
    rows = [
        {"question_id": number, "category": category, "turns": list(turns), "reference": ["5 / Ben", "10 / Anna"]}
        for number, (category, turns) in enumerate(QUESTIONS, 1)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "question.jsonl"
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_task(folder: Path) -> Path:
    """A folder with a task of multiple choice, in lm_eval's format."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"question": turns[0], "choices": [" yes", " no"], "right": number % 2} for number, (_, turns) in enumerate(QUESTIONS)]
    write_text(folder / "questions.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    place = json.dumps(str((folder / "questions.jsonl").absolute()))
    write_text(folder / f"{TASK}.yaml", TASK_FILE.format(task=TASK, place=place))
    return folder


def write_outputs(folder: Path) -> Path:
    """Reference outputs to two instructions, in AlpacaEval's format."""
    same = {"dataset": "smoke", "output": "I would rather not.", "generator": "stand-in"}
    rows = [{**same, "instruction": turns[0]} for _, turns in QUESTIONS[:2]]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "reference.json"
    write_text(path, json.dumps(rows))
    return path


@dataclass(frozen=True)
class StandInJudge:
    """Prefers the longer reply; no judge at all, but offline."""

    def judge(self, cases: Sequence[Case], bench: Bench) -> Iterator[tuple[int, Judgement | Failure]]:
        for number, case in enumerate(cases):
            yield number, Judgement(tuple(float(len(reply)) for reply in case.replies))

    def fingerprint(self) -> Mapping[str, Any]:
        return {"use": "the longer"}

    def problems(self, device: torch.device) -> Sequence[str]:
        return []

    def miniature(self, folder: Path) -> StandInJudge:
        return self
