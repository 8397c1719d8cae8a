"""Any preset in miniature: the same stages, objectives, adapters and schedule, in seconds and offline."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from zephyr_kit.config import Setting, plain
from zephyr_kit.portion import Portion
from zephyr_kit.preset import EvaluateStage, Needs, Preset, Stage, Train, TrainStage

STEPS = 4
EXAMPLES_PER_STEP = 4
MAX_LENGTH = 2048
"""In bytes, which is what a miniature's tokens are."""


def miniature(preset: Preset, folder: Path) -> Preset:
    """The preset with a shrunken model, generated rows and a few steps; `folder` holds both."""
    stages = tuple(_stage(stage, folder) for stage in preset.stages)
    settings = [Setting(f"stages.{stage.name}.{key}", value, "--smoke") for stage in stages for key, value in stage.settings.items()]
    return replace(preset, name=f"{preset.name}-smoke", needs=Needs(), stages=stages, settings=tuple(settings))


def _stage(stage: Stage, folder: Path) -> Stage:
    # One model for all stages: each continues the one before.
    model = stage.model.miniature(folder)
    if isinstance(stage.task, EvaluateStage):
        return replace(stage, model=model, task=EvaluateStage(tuple(suite.miniature() for suite in stage.task.suites)))
    task = _task(stage.task, folder / stage.name)
    shrunken = {f"train.{key}": value for key, value in plain(task.train).items() if key != "optimizer"}
    settings = {**stage.settings, **shrunken, "max_length": task.max_length, "model.weights": str(folder / "model")}
    return replace(stage, model=model, task=task, settings=settings)


def _task(task: TrainStage, folder: Path) -> TrainStage:
    return replace(
        task,
        data=_takes(task.data, folder / "data"),
        held_out=_takes(task.held_out, folder / "held_out"),
        max_length=MAX_LENGTH,
        train=_train(task.train),
    )


def _takes(takes: tuple[Portion, ...], folder: Path) -> tuple[Portion, ...]:
    small = (take.source.miniature(folder / str(number)) for number, take in enumerate(takes))
    return tuple(replace(take, source=source, limit=None, fraction=1.0) for take, source in zip(takes, small, strict=True))


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
