"""Any preset in miniature: the same stages, objectives, adapters and schedule, in seconds and offline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from zephyr_kit.binarise import Binarise
from zephyr_kit.config import Setting, plain
from zephyr_kit.example import BadRow, Example, Message, Removed
from zephyr_kit.gate import Gate
from zephyr_kit.gathered import StageRows
from zephyr_kit.portion import Portion
from zephyr_kit.preset import Needs, Preset, Stage
from zephyr_kit.protocols import DataSource
from zephyr_kit.stages import DistillStage, EvaluateStage, FeedbackStage, GatherStage, Task, Train, TrainStage, Writer

STEPS = 4
EXAMPLES_PER_STEP = 4
MAX_LENGTH = 2048
"""In bytes, which is what a miniature's tokens are."""
PROMPTS = 16
MAX_NEW_TOKENS = 24


@dataclass(frozen=True)
class Refitted:
    """The generated rows of a source, with as many completions as an objective compares, whatever their schema has."""

    source: DataSource
    completions: int

    def rows(self) -> Iterator[Example | BadRow | Removed]:
        return (_refitted(row, self.completions) if isinstance(row, Example) else row for row in self.source.rows())

    def fingerprint(self) -> str:
        return f"{self.completions} completions of {self.source.fingerprint()}"

    def places(self) -> Sequence[str]:
        return tuple(getattr(self.source, "places", tuple)())

    def problems(self) -> Sequence[str]:
        return self.source.problems()

    def miniature(self, folder: Path) -> Refitted:
        return replace(self, source=self.source.miniature(folder))


def miniature(preset: Preset, folder: Path) -> Preset:
    """The preset with a shrunken model, generated rows and a few steps; `folder` holds both."""
    stages = tuple(_stage(stage, folder) for stage in preset.stages)
    settings = [Setting(f"stages.{stage.name}.{key}", value, "--smoke") for stage in stages for key, value in stage.settings.items()]
    return replace(preset, name=f"{preset.name}-smoke", needs=Needs(), stages=stages, settings=tuple(settings), track=())


def _stage(stage: Stage, folder: Path) -> Stage:
    # One model for all stages: each continues the one before.
    model = stage.model.miniature(folder)
    task = _task(stage.task, folder / stage.name)
    settings = {**stage.settings, "model.weights": str(folder / "model")}
    if isinstance(task, TrainStage):
        settings |= {f"train.{key}": value for key, value in plain(task.train).items() if key != "optimizer"}
        settings["max_length"] = task.max_length
    return replace(stage, model=model, task=task, settings=settings, remark="; ".join(filter(None, (stage.remark, _remark(task)))))


def _remark(task: Task) -> str:
    if not isinstance(task, TrainStage) or not any(isinstance(portion.source, Refitted) for portion in (*task.data, *task.held_out)):
        return ""
    count = task.objective.completions
    return f"generated rows get the {count} completion(s) that the objective takes; whether its own rows have them, a run proper tells"


def _task(task: Task, folder: Path) -> Task:
    if isinstance(task, EvaluateStage):
        return replace(task, suites=tuple(suite.miniature(folder / f"suite-{number}") for number, suite in enumerate(task.suites)))
    if isinstance(task, GatherStage):
        return _gathering(task, folder)
    data, held_out = (small_portions(portions, folder / name) for name, portions in (("data", task.data), ("held_out", task.held_out)))
    return replace(
        task,
        data=tuple(refitted(portion, task.objective.completions) for portion in data),
        held_out=tuple(refitted(portion, task.objective.completions) for portion in held_out),
        max_length=MAX_LENGTH,
        gate=Gate(),
        train=_train(task.train),
    )


def _gathering(task: GatherStage, folder: Path) -> FeedbackStage | DistillStage:
    # A model that has learned nothing comes to no end, and a judge may find all that it says alike.
    task = replace(task, held_out=min(task.held_out, 4), unfinished="keep", max_cost=None)
    if isinstance(task, FeedbackStage):
        return _feedback(task, folder)
    assert isinstance(task, DistillStage)
    return replace(
        task,
        seeds=_prompts(task.seeds, folder),
        teacher=_writer(task.teacher, folder / "teacher"),
        user=None if task.user is None else _writer(task.user, folder / "user"),
        exchanges=min(task.exchanges, 2),
    )


def _feedback(task: FeedbackStage, folder: Path) -> FeedbackStage:
    return replace(
        task,
        prompts=_prompts(task.prompts, folder),
        completers=tuple(_writer(writer, folder / f"completer-{number}") for number, writer in enumerate(task.completers)),
        judge=task.judge.miniature(folder / "judge"),
        second_judges=tuple(judge.miniature(folder / f"judge-{number}") for number, judge in enumerate(task.second_judges)),
        binarise=_lenient(task.binarise),
    )


def _lenient(binarise: Binarise) -> Binarise:
    """With ties kept, where the rule may keep any."""
    keeps = binarise.num_completions != 1 and binarise.take is None
    return replace(binarise, margin=0.0, ties="keep" if keeps else "drop")


def _prompts(portions: tuple[Portion, ...], folder: Path) -> tuple[Portion, ...]:
    return tuple(replace(portion, limit=PROMPTS) for portion in small_portions(portions, folder / "prompts"))


def _writer(writer: Writer, folder: Path) -> Writer:
    return replace(writer, completer=writer.completer.miniature(folder), max_new_tokens=MAX_NEW_TOKENS)


def small_portions(takes: tuple[Portion, ...], folder: Path) -> tuple[Portion, ...]:
    """The same rows in miniature, offline."""
    return tuple(_take(take, folder / str(number)) for number, take in enumerate(takes))


def _take(take: Portion, folder: Path) -> Portion:
    filters = tuple(each.miniature(folder / f"filter-{number}") for number, each in enumerate(take.filters))
    return replace(take, source=take.source.miniature(folder), limit=None, fraction=1.0, filters=filters)


def refitted(portion: Portion, completions: int) -> Portion:
    """The portion, its rows refitted where no rule chooses among their completions and the first of them has another number."""
    ranks = portion.binarise is not None and portion.binarise.rule == "ranked"
    if isinstance(portion.source, StageRows) or (portion.binarise is not None and not ranks):
        return portion
    first = next((row for row in portion.source.rows() if isinstance(row, Example) and row.completions), None)
    fits = first is None or len(first.completions) == completions
    return portion if fits else replace(portion, source=Refitted(portion.source, completions))


def _refitted(row: Example, count: int) -> Example:
    if not row.completions:
        return row
    last, more = row.completions[-1], range(1, count - len(row.completions) + 1)
    made = (*row.completions, *((*last[:-1], Message(last[-1].role, f"{last[-1].content} ({number})")) for number in more))
    scores = row.scores and (*row.scores, *(min(row.scores) - number for number in more))[:count]
    return replace(row, completions=made[:count], scores=scores)


def _train(train: Train) -> Train:
    return replace(
        train,
        epochs=None,
        steps=STEPS,
        examples_per_step=EXAMPLES_PER_STEP,
        tokens_per_step=None,
        tokens_per_batch=4096,
        checkpoint_every=2,
        held_out_every=STEPS,
    )
