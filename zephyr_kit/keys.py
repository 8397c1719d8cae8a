"""What the result of a stage depends on."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from zephyr_kit.config import plain
from zephyr_kit.gathered import portions_in
from zephyr_kit.origin import DISTRIBUTION
from zephyr_kit.plugins import OFFERS, Plugins
from zephyr_kit.portion import Portion
from zephyr_kit.preset import Stage, portions_of
from zephyr_kit.protocols import Bench, Start, Suite
from zephyr_kit.stages import DistillStage, EvaluateStage, FeedbackStage, TrainStage
from zephyr_kit.writing import who_writes

RECIPE = 2
"""Part of every stage's key: raised when the same preset comes to mean another result."""
MACHINE_KEYS = (
    *("tokens_per_batch", "sharding", "context_parallel", "share_prompts"),
    *("checkpoint_every", "keep_checkpoints", "keep_best", "held_out_every"),
)
"""Keys of `train` that may change while a run is under way: they change no result, except for which units dropout hides."""


def training_key(stage: Stage, task: TrainStage, start: Start, *, before: str | None, plugins: Plugins) -> dict[str, Any]:
    """Of a stage that trains, `before` being the key of the one whose model it starts from."""
    used = (stage.model, task.objective, task.train.optimizer, *_parts((*task.data, *task.held_out)))
    return {
        "recipe": RECIPE,
        "plugins": _third_parties(used, plugins),
        "settings": _settings(stage),
        "seed": start.seed,
        "model": dict(stage.model.fingerprint()),
        "tokenizer": None if before else stage.model.tokenizer(start).fingerprint(),
        "data": _fingerprints(task.data),
        "held_out": _fingerprints(task.held_out),
        "before": before,
    }


def gathering_key(task: FeedbackStage | DistillStage, bench: Bench, *, seed: int, plugins: Plugins) -> dict[str, Any]:
    """Of a stage that gathers rows."""
    (portions,) = portions_of(task).values()
    if isinstance(task, FeedbackStage):
        writers, judges = task.completers, (task.judge, *task.second_judges)
        own: dict[str, Any] = {"draw": task.draw, "binarise": plain(task.binarise), "check": task.check}
    else:
        writers, judges = (task.teacher, task.user or task.teacher), ()
        own = {"exchanges": task.exchanges}
    used = (*_parts(portions), *(writer.completer for writer in writers), *judges)
    return {
        "recipe": RECIPE,
        "plugins": _third_parties(used, plugins),
        "seed": seed,
        "prompts": _fingerprints(portions),
        "writers": [{**who_writes(writer, bench), "samples": writer.samples} for writer in writers],
        "judges": [dict(judge.fingerprint()) for judge in judges],
        "held_out": task.held_out,
        "unfinished": task.unfinished,
        **own,
    }


def evaluation_key(stage: Stage, task: EvaluateStage, models: Mapping[str, str]) -> dict[str, Any]:
    """Of a stage that measures; `models` are the keys of those that it measures."""
    return {"settings": _settings(stage), "models": dict(models), "read": [what_is_read(suite) for suite in task.suites]}


def what_is_read(suite: Suite) -> dict[str, Any]:
    """The content of the rows, and of other files, that a suite's result depends on."""
    rows = {key: _fingerprints(portions) for key, portions in portions_in(suite).items()}
    files: dict[str, Any] = dict(suite.fingerprint()) if hasattr(suite, "fingerprint") else {}
    return {**rows, **files}


def _settings(stage: Stage) -> dict[str, Any]:
    """The stage's own keys that decide its result; model and data are in its key by their content."""
    free = {"bad_rows", "gate", "reference", *(f"train.{key}" for key in MACHINE_KEYS)}
    content = ("model.", "data[", "held_out[", "gate.")
    return {key: value for key, value in stage.settings.items() if key not in free and not key.startswith(content)}


def _fingerprints(portions: Sequence[Portion]) -> list[list[Any]]:
    return [portion.fingerprint() for portion in portions]


def _parts(portions: Iterable[Portion]) -> list[object]:
    return [part for portion in portions for part in (portion.source, *portion.filters)]


def _nested(part: object) -> Iterator[object]:
    """An offer, and those that stand in its table."""
    if is_dataclass(part) and not isinstance(part, type):
        yield part
        for f in fields(part):
            yield from _nested(getattr(part, f.name))
    elif isinstance(part, (tuple, list)):
        yield from itertools.chain.from_iterable(map(_nested, part))


def _third_parties(used: Iterable[object], plugins: Plugins) -> dict[str, str]:
    """Other distributions whose offers the stage uses, with their versions: their code is part of the result."""
    kinds = {type(part) for part in itertools.chain.from_iterable(map(_nested, used))}
    makers = {plugin for kind in OFFERS for cls, plugin in plugins.offered_by(kind).values() if cls in kinds}
    origins = [plugins.origins[maker] for maker in makers if maker in plugins.origins]
    return {origin.distribution: origin.version for origin in origins if origin.distribution != DISTRIBUTION}
