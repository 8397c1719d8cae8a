"""What a preset needs, asked before anything is loaded."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from zephyr_kit import ZkitError
from zephyr_kit.devices import this_device
from zephyr_kit.disk import DiskError
from zephyr_kit.doctor import version_problems
from zephyr_kit.forecast import Forecast, Outlook, foretell_first_that_fits, over_devices, skeleton_start
from zephyr_kit.observe import Narrator
from zephyr_kit.preset import Preset, Stage, portions_of
from zephyr_kit.remedy import Remedy, find_remedy
from zephyr_kit.runs import RunFolder
from zephyr_kit.sizes import GIB, KIB, MIB, in_words
from zephyr_kit.stages import DistillStage, EvaluateStage, FeedbackStage, Task, Train, TrainStage
from zephyr_kit.world import World

Check = Callable[[], Sequence[str]]
BESIDE_TENSORS, BESIDE_WEIGHTS = 32 * KIB, 4 * MIB
"""Bytes of the other files of a checkpoint, and of a model: its tokenizer for the most part."""


class NotReady(ZkitError):
    """What the machine lacks for a preset."""


def refuse_what_cannot_run(preset: Preset, stages: Sequence[Stage], run: RunFolder, device: torch.device) -> None:
    """Raise `NotReady` with all that stands in the way."""
    found = [*version_problems(), *machine_problems(preset, device)]
    # Side by side, for each may wait for a network that is not there.
    with ThreadPoolExecutor() as pool:
        for lines in pool.map(lambda check: check(), _checks(preset, stages, run, device)):
            found += lines
    if found:
        listed = "\n".join(f"  - {line}" for line in dict.fromkeys(found))
        advice = "to try the whole pipeline on this machine, in miniature: add --smoke"
        raise NotReady(f"{preset.file} cannot run here:\n{listed}\n{advice}")


def foresee(outlook: Outlook, narrator: Narrator, world: World | None = None) -> Forecast | None:
    """What a stage will take of each device; raises `NotReady` when that cannot hold it, None when it cannot be known."""
    way, forecast, reason = foretell_first_that_fits(over_devices(outlook, world or World()))
    if forecast is None:
        narrator.say(f"stage {outlook.stage.name}: {reason}")
        return None
    if not forecast.fits:
        raise NotReady(does_not_fit(forecast, find_remedy(way)))
    narrator.say(
        f"stage {forecast.stage}: about {in_words(forecast.peak)} of {in_words(forecast.device.memory)} at the most, "
        f"in batches of up to {forecast.tokens_per_batch:,} tokens{_longer(forecast)}{', sharded' if forecast.sharded else ''}"
    )
    return forecast


def _longer(forecast: Forecast) -> str:
    longest = forecast.workload.longest if forecast.workload is not None else 0
    return f" (but examples of up to {longest:,}, each by itself)" if longest > forecast.tokens_per_batch else ""


def does_not_fit(forecast: Forecast, remedy: Remedy | None) -> str:
    """What is too much, and what would be less."""
    device = forecast.device
    parts = ", ".join(f"{name} {in_words(size)}" for name, size in sorted(forecast.parts.items(), key=lambda part: -part[1]))
    told = f"stages.{forecast.stage} needs about {in_words(forecast.peak)}, and {device.name} has {in_words(device.memory)}: {parts}"
    if remedy is None:
        return f"{told}\nno setting that is known makes it fit; take a smaller model"
    return f"{told}\nit fits, with about {in_words(remedy.forecast.peak)}, with:  {remedy.options}"


def refuse_full_disk(stages: Sequence[tuple[TrainStage, Forecast | None]], run: RunFolder) -> None:
    """Raise when the disk has no room for the checkpoints and the results of these stages, one checkpoint more than stay included."""
    known = [(task, forecast, run.stage(forecast.stage)) for task, forecast in stages if forecast is not None]
    there = sum(file.stat().st_size for *_, folder in known for file in folder.path.rglob("*") if file.is_file())
    kept = sum(_kept(task.train) * _checkpoint(forecast) + _result(forecast) for task, forecast, _ in known)
    needed, free = kept + max((_checkpoint(forecast) for _, forecast, _ in known), default=0) - there, shutil.disk_usage(run.path).free
    if needed > free:
        raise DiskError(
            f"disk full, or it would be: checkpoints and results need {in_words(needed)} ({needed:,} bytes) more, and {run.path} has "
            f"{in_words(free)} ({free:,} bytes) free; free some, keep fewer (keep_checkpoints), or choose another disk with --output"
        )


def _kept(train: Train) -> int:
    return train.keep_checkpoints + (train.keep_best is not None)


def _checkpoint(forecast: Forecast) -> int:
    return forecast.rehearsal.state + BESIDE_TENSORS


def _result(forecast: Forecast) -> int:
    shape = forecast.rehearsal.shape
    return shape.num_trained * shape.dtype.itemsize + BESIDE_WEIGHTS


def machine_problems(preset: Preset, device: torch.device) -> Iterator[str]:
    """What the preset's `[needs]` names and this machine has not."""
    needs = preset.needs
    if needs.device == "cuda" and device.type != "cuda":
        yield f"[needs] a CUDA GPU with {needs.memory:g} GiB: torch finds none on this machine (device: {device.type})"
        return
    total = this_device(device).memory / GIB
    if total < needs.memory:
        yield f"[needs] {needs.memory:g} GiB of memory on the device ({device}): this one has {total:.4g}"


def _checks(preset: Preset, stages: Sequence[Stage], run: RunFolder, device: torch.device) -> Iterator[Check]:
    before: Path | None = None
    for number, tracker in enumerate(preset.track):
        yield partial(_located, f"track[{number}]", tracker.problems)
    for stage in stages:
        if not isinstance(stage.task, EvaluateStage):
            start = replace(skeleton_start(preset, stage), folder=before)
            yield partial(stage.model.problems, device, start=start)
        if isinstance(stage.task, TrainStage):
            before = run.stage(stage.name).model
        for key, portions in portions_of(stage.task).items():
            for number, portion in enumerate(portions):
                table = f"stages.{stage.name}.{key}[{number}]"
                yield partial(_located, table, portion.source.problems)
                for place, each in enumerate(portion.filters):
                    yield partial(_located, f"{table}.filters[{place}]", each.problems)
        yield from _checks_of(stage.task, f"stages.{stage.name}", device)


def _checks_of(task: Task, where: str, device: torch.device) -> Iterator[Check]:
    """What only this kind of stage needs."""
    if isinstance(task, TrainStage):
        yield partial(_located, f"{where}.train", partial(task.train.optimizer.problems, device))
    elif isinstance(task, FeedbackStage):
        for number, writer in enumerate(task.completers):
            yield partial(_located, f"{where}.completers[{number}]", partial(writer.completer.problems, device))
        for key, judge in [("judge", task.judge), *((f"second_judges[{n}]", judge) for n, judge in enumerate(task.second_judges))]:
            yield partial(_located, f"{where}.{key}", partial(judge.problems, device))
    elif isinstance(task, DistillStage):
        for key, one in (("teacher", task.teacher), ("user", task.user)):
            if one is not None:
                yield partial(_located, f"{where}.{key}", partial(one.completer.problems, device))
    else:
        yield from (suite.problems for suite in task.suites)


def _located(table: str, problems: Check) -> list[str]:
    return [f"[{table}] {line}" for line in problems()]

