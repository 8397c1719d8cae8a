"""A preset's stages, one after another; what is finished and unchanged is skipped."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import tomli_w
import torch

from zephyr_kit import ZkitError
from zephyr_kit.config import plain
from zephyr_kit.observe import Narrator
from zephyr_kit.plugins import DISTRIBUTION, OFFERS, Plugins
from zephyr_kit.portion import Portion
from zephyr_kit.preset import EvaluateStage, Preset, Stage, TrainStage
from zephyr_kit.protocols import Evaluation, Policy, Start
from zephyr_kit.runs import RunFolder, StageFolder, disk_errors_told, surroundings, write_json, write_text
from zephyr_kit.stage import Training, check_data

RECIPE = 1
"""Part of every stage's key: raised when the same preset comes to mean another result."""
MACHINE_KEYS = ("tokens_per_batch", "share_prompts", "checkpoint_every", "keep_checkpoints", "held_out_every")
"""Keys of `train` that may change while a run is under way: they change no result, except for which units dropout hides."""


class NotReady(ZkitError):
    """What the machine lacks for a preset."""


@dataclass(frozen=True)
class Trained:
    """A finished training stage."""

    stage: Stage
    folder: Path
    key: str


@dataclass(frozen=True)
class Pipeline:
    """A run of a preset in a folder."""

    preset: Preset
    folder: RunFolder
    plugins: Plugins
    narrator: Narrator
    device: torch.device

    def run(self) -> list[Evaluation]:
        """Run every stage that is not done yet; return the evaluations."""
        with self.folder.locked(), disk_errors_told(self.folder.path):
            self._check_data()
            self._note_preset()
            trained: list[Trained] = []
            evaluations: list[Evaluation] = []
            for stage in self.preset.stages:
                if isinstance(stage.task, TrainStage):
                    trained.append(self._train(stage, stage.task, trained))
                else:
                    evaluations += self._evaluate(stage, stage.task, trained)
            return evaluations

    def check(self) -> None:
        """Refuse, before anything is loaded, what this machine cannot do."""
        found = list(machine_problems(self.preset, self.device))
        # Side by side, for each may wait for a network that is not there.
        with ThreadPoolExecutor() as pool:
            for lines in pool.map(lambda check: check(), self._checks()):
                found += lines
        if found:
            listed = "\n".join(f"  - {line}" for line in dict.fromkeys(found))
            advice = "to try the whole pipeline on this machine, in miniature: add --smoke"
            raise NotReady(f"{self.preset.file} cannot run here:\n{listed}\n{advice}")

    def _checks(self) -> list[Callable[[], Sequence[str]]]:
        checks: list[Callable[[], Sequence[str]]] = []
        before: Path | None = None
        for stage in self.preset.stages:
            if isinstance(stage.task, TrainStage):
                start = Start(before, stage.changed, self.preset.seed)
                checks.append(partial(stage.model.problems, self.device, start=start))
                checks.append(partial(_located, f"stages.{stage.name}.train", stage.task.train.optimizer.problems, self.device))
                checks += [take.source.problems for take in (*stage.task.data, *stage.task.held_out)]
                before = self.folder.stage(stage.name).model
            else:
                checks += [suite.problems for suite in stage.task.suites]
        return checks

    def _check_data(self) -> None:
        """Read and tokenise the data of every stage to come: a bad row must not be found after a day of training.

        Nor after an earlier result has been set aside for it.
        """
        before: Trained | None = None
        latest: Path | None = None
        for stage in self.preset.stages:
            if not isinstance(stage.task, TrainStage):
                continue
            folder, key = self.folder.stage(stage.name), self._training_key(stage, stage.task, before)
            if folder.is_done(key):
                latest = folder.model
            else:
                check_data(stage, stage.task, Start(latest, stage.changed, self.preset.seed), self.narrator, self.folder.path)
            before = Trained(stage, folder.model, _digest(key))

    def _note_preset(self) -> None:
        write_json(self.folder.path / "settings.json", [plain(setting) for setting in self.preset.settings])
        write_text(self.folder.path / "preset.toml", tomli_w.dumps(self.preset.table))

    def _note_work(self, stage: Stage) -> None:
        """Add to `run.json` with what, and where, a stage is worked on."""
        self.narrator.say(f"stage {stage.name}")
        notes = self.folder.path / "run.json"
        before = json.loads(notes.read_text("utf-8")) if notes.exists() else []
        note = {"stage": stage.name, "preset": self.preset.file, "device": str(self.device), **surroundings()}
        write_json(notes, [*before, note])

    def _train(self, stage: Stage, task: TrainStage, trained: Sequence[Trained]) -> Trained:
        before = trained[-1] if trained else None
        key = self._training_key(stage, task, before)
        folder = self._open(stage, key)
        if folder.done() is None:
            start = Start(before.folder if before else None, stage.changed, self.preset.seed)
            self._note_work(stage)
            Training(
                self.preset.name,
                stage,
                task,
                folder,
                start,
                self.preset.seed,
                self.device,
                self.plugins,
                self.narrator,
                tuple(one.stage.name for one in trained),
            ).run()
        return Trained(stage, folder.model, _digest(key))

    def _evaluate(self, stage: Stage, task: EvaluateStage, trained: Sequence[Trained]) -> list[Evaluation]:
        key = {"settings": _settings(stage), "models": {one.stage.name: one.key for one in trained}}
        folder = self._open(stage, key)
        done = folder.done()
        if done is None:
            self._note_work(stage)
            tokenizer = trained[-1].stage.model.tokenizer(Start(trained[-1].folder))
            models = {one.stage.name: self._opener(one) for one in trained}
            with self.narrator.track("measuring"):
                measured = [suite.evaluate(models, tokenizer, folder.path) for suite in task.suites]
            done = {"evaluations": [plain(evaluation) for evaluation in measured]}
            folder.finish(done)
        return [Evaluation(**evaluation) for evaluation in done["evaluations"]]

    def _opener(self, trained: Trained) -> Callable[[], AbstractContextManager[Policy]]:
        @contextmanager
        def opened() -> Iterator[Policy]:
            yield trained.stage.model.load(self.device, start=Start(trained.folder), train=False)

        return opened

    def _third_parties(self, stage: Stage, task: TrainStage) -> dict[str, str]:
        """Other distributions whose offers the stage uses, with their versions: their code is part of the result."""
        sources = [portion.source for portion in (*task.data, *task.held_out)]
        used = {type(part) for part in (stage.model, task.objective, task.train.optimizer, *sources)}
        makers = {plugin for kind in OFFERS for cls, plugin in self.plugins.offered_by(kind).values() if cls in used}
        origins = [self.plugins.origins[maker] for maker in makers if maker in self.plugins.origins]
        return {origin.distribution: origin.version for origin in origins if origin.distribution != DISTRIBUTION}

    def _open(self, stage: Stage, key: Mapping[str, Any]) -> StageFolder:
        folder, differing = self.folder.open_stage(stage.name, key)
        damage = folder.damage()
        if damage is not None:
            self.narrator.say(f"stage {stage.name}: {damage}; it is made again, from its last checkpoint if that is there")
            folder.reopen()
        elif folder.done() is not None:
            told = " is taken back from superseded/, where the same one was" if differing else ": done before, nothing changed"
            self.narrator.say(f"stage {stage.name}{told}")
        elif differing:
            reasons = ["the stage before it changed" if line.startswith("before: ") else line for line in differing]
            more = f" (and {len(reasons) - 3} more)" if len(reasons) > 3 else ""
            self.narrator.say(f"stage {stage.name} runs again: {'; '.join(reasons[:3])}{more}; what it was is kept under superseded/")
        return folder

    def _training_key(self, stage: Stage, task: TrainStage, before: Trained | None) -> dict[str, Any]:
        start = Start(before.folder if before else None, stage.changed, self.preset.seed)
        return {
            "recipe": RECIPE,
            "plugins": self._third_parties(stage, task),
            "settings": _settings(stage),
            "seed": self.preset.seed,
            "model": dict(stage.model.fingerprint()),
            "tokenizer": None if before else stage.model.tokenizer(start).fingerprint(),
            "data": _fingerprints(task.data),
            "held_out": _fingerprints(task.held_out),
            "before": before.key if before else None,
        }


def machine_problems(preset: Preset, device: torch.device) -> Iterator[str]:
    """What the preset's `[needs]` names and this machine has not."""
    needs = preset.needs
    if needs.device == "cuda" and device.type != "cuda":
        yield f"[needs] a CUDA GPU with {needs.memory:g} GiB: torch finds none on this machine (device: {device.type})"
        return
    total = _memory(device)
    if total < needs.memory:
        yield f"[needs] {needs.memory:g} GiB of memory on the device ({device}): this one has {total:.0f}"


def _memory(device: torch.device) -> float:
    """GiB of the device, or of the host."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory) / 2**30
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def _located(table: str, problems: Callable[[torch.device], Sequence[str]], device: torch.device) -> list[str]:
    return [f"[{table}] {line}" for line in problems(device)]


def _settings(stage: Stage) -> dict[str, Any]:
    """The stage's own keys that decide its result; model and data are in its key by their content."""
    free = {"bad_rows", "reference", *(f"train.{key}" for key in MACHINE_KEYS)}
    content = ("model.", "data[", "held_out[")
    return {key: value for key, value in stage.settings.items() if key not in free and not key.startswith(content)}


def _fingerprints(portions: Sequence[Portion]) -> list[list[Any]]:
    return [[portion.source.fingerprint(), portion.fraction, portion.limit, portion.draw] for portion in portions]


def _digest(key: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(key, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()
