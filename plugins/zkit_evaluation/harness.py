"""The suite `lm-eval`: tasks of the language model evaluation harness. Nothing here imports it before it is used."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Gt

from zephyr_kit import ZkitError
from zephyr_kit.config import did_you_mean
from zephyr_kit.fingerprint import folder_fingerprint
from zephyr_kit.protocols import Evaluation, Tokenizer
from zephyr_kit.records import write_text
from zkit_evaluation.packages import bars_in_terminals_alone, unusable

if TYPE_CHECKING:
    from zephyr_kit.subjects import Subject
    from zkit_evaluation.intervals import Interval

MODULES = ("lm_eval", "lm_eval.api.model", "lm_eval.tasks")
TITLE = "Language model evaluation harness"
HALF_WIDTH = 1.96
"""Of the 95 % interval, in standard errors."""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A task, and how the Open LLM Leaderboard of Zephyr's time (arXiv 2310.16944, table 2) had it."""

    task: str
    fewshot: int
    metric: str


BENCHMARKS = {
    "arc": Benchmark("arc_challenge", 25, "acc_norm"),
    "hellaswag": Benchmark("hellaswag", 10, "acc_norm"),
    "mmlu": Benchmark("mmlu", 5, "acc"),
    "truthfulqa": Benchmark("truthfulqa_mc2", 0, "acc"),
}


@dataclass(frozen=True, kw_only=True)
class LmEval:
    """Tasks of the language model evaluation harness, on the model as it is loaded here."""

    tasks: tuple[str, ...] = tuple(BENCHMARKS)
    """`arc`, `hellaswag`, `mmlu` and `truthfulqa` as the paper has them, or any of lm_eval's tasks by its name."""
    include: str | None = None
    """A folder of more tasks, in lm_eval's YAML."""
    fewshot: Annotated[int, Ge(0)] | None = None
    """Examples in each question; the benchmark's own, or the task's, unless given."""
    limit: Annotated[int, Gt(0)] | None = None
    """So many questions of each task alone: for a trial, not for a result."""
    chat: bool = False
    """Ask through the chat template; the leaderboard did not."""
    seed: int = 1234
    """Of the draw of examples; lm_eval's own."""

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ValueError("`tasks` = []: should name at least one")

    def problems(self) -> Sequence[str]:
        """The package, and the folder."""
        found = [f"suite lm-eval: {why}"] if (why := unusable(*MODULES)) else []
        if self.include is not None and not Path(self.include).expanduser().is_dir():
            found.append(f"suite lm-eval: include: there is no folder {Path(self.include).expanduser().absolute()}")
        return found

    def fingerprint(self) -> Mapping[str, Any]:
        """The files of the folder."""
        return {} if self.include is None else {"include": folder_fingerprint(Path(self.include).expanduser())}

    def evaluate(self, models: Mapping[str, Subject], tokenizer: Tokenizer, folder: Path) -> Evaluation:
        """Measure each model; what lm_eval says of it stands in a file of `folder`, and every request's answer is kept there."""
        if why := unusable(*MODULES):
            raise ZkitError(f"suite lm-eval: {why}")
        rows: dict[str, dict[str, float | None]] = {}
        intervals: dict[str, dict[str, Interval]] = {}
        with _quiet():
            asking = self._asking()
            for name, subject in models.items():
                results = asking.results(subject, {task: self._benchmark(task) for task in self.tasks}, folder / "requests")
                place = folder / "results" / f"{name.replace('/', '--')}.json"
                place.parent.mkdir(parents=True, exist_ok=True)
                write_text(place, json.dumps(results, indent=1, default=str))
                rows[name], intervals[name] = self._row(results)
        columns = {column: self._meaning(column) for column in next(iter(rows.values()))}
        return Evaluation(TITLE, columns, rows, intervals=intervals)

    def miniature(self, folder: Path) -> LmEval:
        """A task of our own, of four questions."""
        from zkit_evaluation.miniature import TASK, write_task

        return replace(self, tasks=(TASK,), include=str(write_task(folder)), fewshot=None, limit=None)

    def _asking(self) -> Any:
        from zkit_evaluation.harness_model import Asking

        asking = Asking.of([self._benchmark(task).task for task in self.tasks], self.include, self)
        for task in self.tasks:
            if not asking.knows(name := self._benchmark(task).task):
                near = did_you_mean(name, [*BENCHMARKS, *asking.names])
                raise ZkitError(f"suite lm-eval: tasks: lm_eval has no task {name!r}{near}")
        return asking

    def _benchmark(self, task: str) -> Benchmark:
        return BENCHMARKS.get(task, Benchmark(task, -1, ""))

    def _row(self, results: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, float | None], dict[str, Interval]]:
        row: dict[str, float | None] = {}
        intervals: dict[str, Interval] = {}
        for task, found in results.items():
            metric = self._benchmark(task).metric
            for name, value, error in figures(found[self._benchmark(task).task]):
                if metric in ("", name):
                    column = task if metric else f"{task} {name}"
                    row[column] = value
                    if error is not None:
                        intervals[column] = (value - HALF_WIDTH * error, value + HALF_WIDTH * error)
        known = [row[task] for task in BENCHMARKS if row.get(task) is not None]
        if len(known) == len(BENCHMARKS):
            row["average"] = fmean(value for value in known if value is not None)
        return row, intervals

    def _meaning(self, column: str) -> str:
        if column == "average":
            return "of the four"
        if column in BENCHMARKS:
            benchmark = BENCHMARKS[column]
            fewshot = benchmark.fewshot if self.fewshot is None else self.fewshot
            only = f", the first {self.limit} questions of each task alone" if self.limit else ""
            return f"{benchmark.metric} of {benchmark.task}, {fewshot} examples in each question{only}"
        return "as lm_eval has it"


def figures(found: Mapping[str, Any]) -> Iterator[tuple[str, float, float | None]]:
    """Each metric of a task, with its standard error; `name,filter` is how lm_eval calls them."""
    for key, value in found.items():
        name, comma, kept = key.partition(",")
        if comma and not name.endswith("_stderr") and isinstance(value, (int, float)):
            error = found.get(f"{name}_stderr,{kept}")
            yield name if kept == "none" else key, float(value), float(error) if isinstance(error, (int, float)) else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the package's own remarks among those of the run; warnings of its libraries are not ours to mend."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), bars_in_terminals_alone():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
