"""A preset's stages, one after another; what is finished and unchanged is skipped."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tomli_w
import torch

from zephyr_kit.answers import Answers
from zephyr_kit.cache import cache_folder, cache_in_use
from zephyr_kit.config import plain
from zephyr_kit.corpus import Corpus
from zephyr_kit.devices import give_back_memory, memory_left, this_device
from zephyr_kit.distilling import Distilling
from zephyr_kit.evaluating import evaluate, folder_names
from zephyr_kit.evaluations import read_evaluation
from zephyr_kit.feedback import Feedback
from zephyr_kit.forecast import Forecast, Outlook, skeleton_start, with_capacity
from zephyr_kit.gathered import are_there, gathered_by
from zephyr_kit.inputs import refuse, refuse_unknown
from zephyr_kit.journal import Journal
from zephyr_kit.keys import evaluation_key, gathering_key, training_key
from zephyr_kit.observe import Narrator
from zephyr_kit.plugins import Plugins
from zephyr_kit.preflight import foresee, refuse_full_disk, refuse_what_cannot_run
from zephyr_kit.preset import Preset, Stage, bound, portions_of, tables_of
from zephyr_kit.prompts import read_prompts
from zephyr_kit.protocols import Bench, Evaluation, Start
from zephyr_kit.records import digest, sealed, write_json, write_text
from zephyr_kit.runs import FILES, RunFolder, StageFolder
from zephyr_kit.sizes import in_words
from zephyr_kit.stage_data import check_data, prepare_part
from zephyr_kit.stages import BASE, DistillStage, EvaluateStage, FeedbackStage, TrainStage
from zephyr_kit.standing import Outdated, Standing, Trained
from zephyr_kit.stopping import Stop
from zephyr_kit.subjects import Subject, lineage
from zephyr_kit.surroundings import surroundings
from zephyr_kit.training import Training
from zephyr_kit.world import World

CHANGES = {"before": "the stage before it changed", **{name: f"its {name} changed" for name in ("data", "prompts")}}
"""Why a stage runs again, where the keys themselves would say little."""


@dataclass(frozen=True)
class Pipeline:
    """A run of a preset in a folder."""

    preset: Preset
    folder: RunFolder
    plugins: Plugins
    narrator: Narrator
    device: torch.device
    world: World = field(default_factory=World)
    stop: Stop = field(default_factory=Stop)
    accepted: tuple[str, ...] = ()
    """Inputs that may have changed since the run was begun, by name."""

    def run(self) -> list[Evaluation]:
        """Run every stage that is not done yet; return the evaluations."""
        with self.folder.locked(), cache_in_use(), closing(Answers(cache_folder("answers"))) as answers:
            standing = self._standing(answers)
            if self.accepted:
                refuse_unknown(self.accepted, standing.names())
            outdated = standing.outdated()
            refuse([change for _, change in outdated.changes], self.accepted)
            self._take_over(standing)
            forecasts = self._check_data(standing)
            tasks = {stage.name: stage.task for stage in self._stages if isinstance(stage.task, TrainStage)}
            refuse_full_disk([(tasks[name], forecast) for name, forecast in forecasts.items()], self.folder)
            self._set_aside(outdated)
            self._take_over(standing)
            self._note_preset()
            trained: list[Trained] = []
            evaluations: list[Evaluation] = []
            for stage in self._stages:
                self.stop.check()
                if isinstance(stage.task, TrainStage):
                    trained.append(self._train(stage, stage.task, trained, forecasts))
                elif isinstance(stage.task, EvaluateStage):
                    evaluations += self._evaluate(stage, stage.task, trained, answers)
                else:
                    self._gather(stage, stage.task, standing.bench(stage, trained[-1] if trained else None))
            self.world.word()
            return evaluations

    def follow(self) -> None:
        """Take part in whatever the leader trains, until it says nothing more."""
        stages = {stage.name: stage for stage in self._stages}
        while (call := self.world.word()) is not None:
            stage = stages[call["stage"]]
            assert isinstance(stage.task, TrainStage)
            self.narrator.say(f"stage {stage.name}")
            start = Start(call["start"] and Path(call["start"]), stage.changed, self.preset.seed)
            task = replace(stage.task, train=replace(stage.task.train, **call["train"]))
            self._training(stage, task, self.folder.stage(stage.name), start).run()

    @property
    def _stages(self) -> list[Stage]:
        """With the rows that one takes from another found in the run's folder."""
        return [bound(stage, self.folder.path) for stage in self.preset.stages]

    def _standing(self, answers: Answers) -> Standing:
        return Standing(self._stages, self.preset.seed, self.folder, self.plugins, self.device, answers)

    def check(self) -> None:
        """Refuse, before anything is loaded, what this machine cannot do."""
        with closing(Answers(cache_folder("answers"))) as answers:
            gathered = self._standing(answers).gathered()
        refuse_what_cannot_run(self.preset, [stage for stage in self._stages if stage.name not in gathered], self.folder, self.device)

    def _set_aside(self, outdated: Outdated) -> None:
        """Make room for what is made anew, the last stage first: cut short, that leaves a change which the same command accepts again."""
        for name, change in outdated.changes:
            self.narrator.say(f"stage {name} runs again: {change.name}: was {change.was}, is {change.now}; it is kept under superseded/")
        if outdated.changes:
            self._journal.add(*({"stage": name, "accepted": each.name, "was": each.was, "is": each.now} for name, each in outdated.changes))
        for name in reversed(outdated.stages):
            self.folder.set_aside(name)

    def _take_over(self, standing: Standing) -> None:
        """Stages that another run has finished are taken from it, up to the first that has to be made."""
        for stage, key in standing.with_keys() if self.folder.pool else ():
            place = self.folder.take_over(stage.name, key)
            if place is not None:
                self.narrator.say(f"stage {stage.name}: the very same was made in {place}, and is taken from there")
                made = (note for note in Journal(place.parent / "run.json").notes() if note["stage"] == stage.name)
                self._journal.add(*({**note, "taken_from": str(place)} for note in made))
            elif not self.folder.stage(stage.name).is_done(key):
                break

    def _check_data(self, standing: Standing) -> dict[str, Forecast | None]:
        """Read and tokenise the data of every stage to come, and foresee its memory: neither must be found out after a day of training.

        Nor after an earlier result has been set aside for it. What a stage has yet to gather is checked when it is there.
        """
        forecasts: dict[str, Forecast | None] = {}
        latest: Path | None = None
        to_come: set[str] = set()
        for stage, key in standing.with_keys():
            folder, task = self.folder.stage(stage.name), stage.task
            portions = [portion for each in portions_of(task).values() for portion in each]
            there = are_there(portions) and not gathered_by(portions) & to_come
            if isinstance(task, TrainStage):
                if folder.is_done(key):
                    latest = folder.model
                elif there:
                    corpus = check_data(stage, task, Start(latest, stage.changed, self.preset.seed), self.narrator, self.folder.path)
                    forecasts[stage.name] = self._foresee(stage, task, corpus)
            elif isinstance(task, (FeedbackStage, DistillStage)) and not folder.is_done(key):
                to_come.add(stage.name)  # what stands there will not stay
                if there:
                    (name,) = portions_of(task)
                    read_prompts(portions, allowed=task.bad_rows, where=f"stages.{stage.name}.{name}")
        return forecasts

    def _foresee(self, stage: Stage, task: TrainStage, corpus: Corpus, libraries: int | None = None) -> Forecast | None:
        device = this_device(self.device).for_each_of(self.world.local_size)
        outlook = Outlook(stage, task, skeleton_start(self.preset, stage), device, self.preset.seed, corpus, libraries)
        # A rehearsal's backward pass calls Python back from C++, where an exception may abort the process.
        with self.stop.later("the plan is made"):
            forecast = foresee(outlook, self.narrator, self.world)
        left = memory_left(self.device) // (self.world.local_size if device.kind == "cpu" else 1)
        if forecast is not None and forecast.peak > left:
            self.narrator.say(f"stage {stage.name}: others hold so much of that memory that {in_words(left)} are left just now")
        return forecast

    def _note_preset(self) -> None:
        write_json(self.folder.path / "settings.json", [plain(setting) for setting in self.preset.settings])
        write_text(self.folder.path / "preset.toml", tomli_w.dumps(self.preset.table))

    def _note_work(self, stage: Stage, **facts: Any) -> None:
        """Add to `run.json` with what, and where, a stage is worked on; tell what of it is not as it was when the stage was begun."""
        self.narrator.say(f"stage {stage.name}")
        note = {"stage": stage.name, "preset": self.preset.file, "device": str(self.device), **facts, **surroundings()}
        if self.folder.stage(stage.name).is_begun:
            for line in self._journal.changed_since(note):
                self.narrator.say(f"not as at its last start, and allowed: {line}")
        self._journal.begin({**note, "key": digest(self.folder.stage(stage.name).key() or {})})

    @contextmanager
    def _at_work(self, stage: Stage, **facts: Any) -> Iterator[None]:
        self._note_work(stage, **facts)
        with self._journal.closing_last(self.device):
            yield

    @property
    def _journal(self) -> Journal:
        return Journal(self.folder.path / "run.json")

    def _train(self, stage: Stage, task: TrainStage, trained: Sequence[Trained], forecasts: Mapping[str, Forecast | None]) -> Trained:
        before = trained[-1] if trained else None
        start = Start(before.folder if before else None, stage.changed, self.preset.seed)
        key = training_key(stage, task, start, before=before.key if before else None, plugins=self.plugins)
        folder = self._open(stage, key)
        if folder.done() is None:
            forecast = forecasts[stage.name] if stage.name in forecasts else self._foresee_late(stage, task, start, forecasts)
            task = with_capacity(task, forecast)
            with self._at_work(stage, tokens_per_batch=task.train.capacity, ranks=self.world.size, **_arithmetic(forecast)):
                if stage.remark:
                    self.narrator.say(f"stage {stage.name}: {stage.remark}")
                settings = {"tokens_per_batch": task.train.capacity, "sharding": task.train.sharding}
                self.world.word({"stage": stage.name, "start": start.folder and str(start.folder), "train": settings})
                self._training(stage, task, folder, start, tuple(one.stage.name for one in trained)).run()
        return Trained(stage, folder.model, digest(key))

    def _training(self, stage: Stage, task: TrainStage, folder: StageFolder, start: Start, before: tuple[str, ...] = ()) -> Training:
        return Training(
            self.preset.name,
            replace(stage, task=task, settings={**stage.settings, "train.tokens_per_batch": task.train.capacity}),
            task,
            folder,
            start,
            self.preset.seed,
            self.device,
            self.plugins,
            self.narrator,
            before,
            self.world.in_teams(task.train.context_parallel),
            self.stop,
        )

    def _foresee_late(self, stage: Stage, task: TrainStage, start: Start, forecasts: Mapping[str, Forecast | None]) -> Forecast | None:
        """Of a stage whose data was gathered by a stage before it."""
        give_back_memory()
        # What this process held before its first model: now it holds as well what that one left.
        libraries = next((forecast.libraries for forecast in forecasts.values() if forecast is not None), None)
        corpus = prepare_part(task, task.data, stage.model.tokenizer(start), self.narrator, f"data of {stage.name}")
        return self._foresee(stage, task, corpus, libraries)

    def _gather(self, stage: Stage, task: FeedbackStage | DistillStage, bench: Bench) -> None:
        folder = self._open(stage, gathering_key(task, bench, seed=self.preset.seed, plugins=self.plugins))
        if folder.done() is not None:
            return
        with self._at_work(stage):
            if isinstance(task, FeedbackStage):
                Feedback(stage.name, task, folder, bench, self.preset.seed, self.narrator).run()
            else:
                Distilling(stage.name, task, folder, bench, self.preset.seed, self.narrator).run()

    def _evaluate(self, stage: Stage, task: EvaluateStage, trained: Sequence[Trained], answers: Answers) -> list[Evaluation]:
        folder = self._open(stage, evaluation_key(stage, task, {one.stage.name: one.key for one in trained}))
        done = folder.done()
        if done is None:
            base = Subject(trained[0].stage.model, Start(seed=self.preset.seed), self.device, answers, self.narrator)
            models = lineage(base, [(one.stage.name, one.stage.model, one.folder) for one in trained])
            measured = {BASE: base, **models} if task.base else models
            names = folder_names([stage.settings[f"suites[{number}].use"] for number in range(len(task.suites))])
            found = []
            with self._at_work(stage):
                for name, suite in zip(names, task.suites, strict=True):
                    self.narrator.say(f"measuring: {name}")
                    found += evaluate(suite, measured, folder.path / name)
                done = {"evaluations": [plain(evaluation) for evaluation in found]}
                folder.finish(done)
        return [read_evaluation(evaluation) for evaluation in done["evaluations"]]

    def _open(self, stage: Stage, key: Mapping[str, Any]) -> StageFolder:
        opened = self.folder.open_stage(stage.name, key)
        folder = opened.stage
        files = {table: portion.files() for table, portion in tables_of(stage.task)}
        write_json(folder.path / FILES, sealed(files))
        damage = folder.damage()
        if damage is not None:
            self.narrator.say(f"stage {stage.name}: {damage}; it is made again, from its last checkpoint if that is there")
            folder.reopen()
        elif folder.done() is not None:
            told = " is taken back from superseded/, where the same one was" if opened.taken_back else ": done before, nothing changed"
            self.narrator.say(f"stage {stage.name}{told}")
        elif opened.differing:
            reasons = list(dict.fromkeys(CHANGES.get(re.split(r"[:[]", line)[0], line) for line in opened.differing))
            more = f" (and {len(reasons) - 3} more)" if len(reasons) > 3 else ""
            self.narrator.say(f"stage {stage.name} runs again: {'; '.join(reasons[:3])}{more}; what it was is kept under superseded/")
        return folder


def _arithmetic(forecast: Forecast | None) -> dict[str, float]:
    """Operations a token, as the plan's rehearsal of the largest batch has counted them."""
    if forecast is None:
        return {}
    here = forecast.rehearsal
    return {"flops_per_token": here.flops / here.num_tokens, "reference_flops_per_token": here.reference_flops / here.num_tokens}
