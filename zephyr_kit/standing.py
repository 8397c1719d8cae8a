"""What stands in a run's folder, beside what its preset would make there now."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from zephyr_kit import ZkitError
from zephyr_kit.answers import Answers
from zephyr_kit.devices import give_back_memory
from zephyr_kit.gathered import gathered_by
from zephyr_kit.inputs import Change, changes, files_differing, names
from zephyr_kit.keys import evaluation_key, gathering_key, training_key
from zephyr_kit.plugins import Plugins
from zephyr_kit.preset import Stage, portions_of, tables_of
from zephyr_kit.protocols import Bench, Policy, Start
from zephyr_kit.records import as_json, digest
from zephyr_kit.runs import RunFolder
from zephyr_kit.stages import DistillStage, EvaluateStage, FeedbackStage, TrainStage


@dataclass(frozen=True)
class Trained:
    """A finished training stage."""

    stage: Stage
    folder: Path
    key: str


@dataclass(frozen=True)
class Outdated:
    """What stands in the folder and would not be made so now."""

    stages: Sequence[str]
    changes: Sequence[tuple[str, Change]]
    """The inputs that have changed, each with the stage that it is one of."""


@dataclass(frozen=True)
class Standing:
    """A preset's stages with their keys, and what of them is in the folder."""

    stages: Sequence[Stage]
    seed: int
    folder: RunFolder
    plugins: Plugins
    device: torch.device
    answers: Answers

    def gathered(self) -> set[str]:
        """Stages that have asked already, and will ask nobody again: no endpoint need be there for them."""
        before: Trained | None = None
        found: set[str] = set()
        for stage in self.stages:
            folder = self.folder.stage(stage.name)
            if isinstance(stage.task, TrainStage):
                before = Trained(stage, folder.model, digest(folder.key() or {}))
            elif isinstance(stage.task, (FeedbackStage, DistillStage)) and folder.done() is not None:
                with suppress(ZkitError):  # what is not there is told with all other problems
                    key = gathering_key(stage.task, self.bench(stage, before), seed=self.seed, plugins=self.plugins)
                    found |= {stage.name} if folder.is_done(key) else set()
        return found

    def with_keys(self, *, as_they_stand: bool = False) -> Iterator[tuple[Stage, dict[str, Any]]]:
        """Every stage with its key: after the stages before it as they will be, or as they stand in the folder."""
        before: Trained | None = None
        models: dict[str, str] = {}
        for stage in self.stages:
            folder, task = self.folder.stage(stage.name), stage.task
            if isinstance(task, TrainStage):
                start = Start(before.folder if before else None, stage.changed, self.seed)
                key = training_key(stage, task, start, before=before.key if before else None, plugins=self.plugins)
                models[stage.name] = digest((folder.key() if as_they_stand else None) or key)
                before = Trained(stage, folder.model, models[stage.name])
            elif isinstance(task, EvaluateStage):
                key = evaluation_key(stage, task, models)
            else:
                key = gathering_key(task, self.bench(stage, before), seed=self.seed, plugins=self.plugins)
            yield stage, key

    def names(self) -> set[str]:
        """What the inputs of the stages are called, those of before included."""
        keys = [(stage, each) for stage, key in self.with_keys() for each in (key, self.folder.stage(stage.name).key() or {})]
        return {name for stage, key in keys for name in names(stage.name, as_json(key), stage.changed)}

    def outdated(self) -> Outdated:
        """What is there and would not be made so now, with the inputs that have changed."""
        names = [stage.name for stage in self._outdated()]
        found = {change.name: (name, change) for name, change in self._changes()} if names else {}
        return Outdated(names, list(found.values()))

    def _outdated(self) -> Iterator[Stage]:
        """Stages that stand in the folder as they would not be made now."""
        names: set[str] = set()
        for stage, key in self.with_keys():
            standing = self.folder.stage(stage.name).key()
            portions = [portion for each in portions_of(stage.task).values() for portion in each]
            if standing is not None and (standing != as_json(key) or gathered_by(portions) & names):
                names.add(stage.name)
                yield stage

    def _changes(self) -> Iterator[tuple[str, Change]]:
        for stage, key in self.with_keys(as_they_stand=True):
            folder = self.folder.stage(stage.name)
            if folder.is_begun:
                found = changes(stage.name, folder.key() or {}, as_json(key), stage.changed)
                yield from ((stage.name, self._in_words(stage, change)) for change in found)

    def _in_words(self, stage: Stage, change: Change) -> Change:
        """Of rows: which files are others, and how many rows there are."""
        table = change.name.removeprefix(f"stages.{stage.name}.")
        portion, folder = dict(tables_of(stage.task)).get(table), self.folder.stage(stage.name)
        before = folder.files_of(table) if portion is not None else None
        if portion is None or before is None or not (told := files_differing(before, portion.files())):
            return change
        was, now = (f"{count:,} rows" if count is not None else "" for count in (folder.rows_of(table), portion.num_rows()))
        return Change(change.name, was or "other rows", f"{now}: {told}".removeprefix(": "))

    def bench(self, stage: Stage, before: Trained | None) -> Bench:
        """With the model of the stage before; where none trains before, with that of [model] itself."""
        # Two trainings by one key may end in different bits: on a GPU, in other batches, under another torch.
        made = self.folder.stage(before.stage.name).done() if before else None
        own_key = digest({"key": before.key, "files": (made or {}).get("files")} if before else stage.model.fingerprint())
        start = Start(before.folder if before else None, seed=self.seed)
        return Bench(self.device, self.answers, self._opener(before.stage if before else stage, start), own_key)

    def _opener(self, stage: Stage, start: Start) -> Callable[[], AbstractContextManager[Policy]]:
        @contextmanager
        def opened() -> Iterator[Policy]:
            give_back_memory()
            yield stage.model.load(self.device, start=start, train=False)

        return opened
