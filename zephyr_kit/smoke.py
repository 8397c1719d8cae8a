"""Any preset in miniature: the same stages, objectives, adapters and schedule, in seconds and offline."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from zephyr_kit.config import Setting, plain
from zephyr_kit.gate import Gate
from zephyr_kit.portion import Portion
from zephyr_kit.preset import Needs, Preset, Stage
from zephyr_kit.stages import DistillStage, EvaluateStage, FeedbackStage, GatherStage, Task, Train, TrainStage, Writer

STEPS = 4
EXAMPLES_PER_STEP = 4
MAX_LENGTH = 2048
"""In bytes, which is what a miniature's tokens are."""
PROMPTS = 16
MAX_NEW_TOKENS = 24


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
    return replace(stage, model=model, task=task, settings=settings)


def _task(task: Task, folder: Path) -> Task:
    if isinstance(task, EvaluateStage):
        return replace(task, suites=tuple(suite.miniature(folder / f"suite-{number}") for number, suite in enumerate(task.suites)))
    if isinstance(task, GatherStage):
        return _gathering(task, folder)
    return replace(
        task,
        data=small_portions(task.data, folder / "data"),
        held_out=small_portions(task.held_out, folder / "held_out"),
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
        binarise=task.binarise if task.binarise.rule == "best" else replace(task.binarise, margin=0.0, ties="keep"),
    )


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
