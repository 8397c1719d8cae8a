"""One training stage: data, model, steps, checkpoints, result."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from zephyr_kit.cache import cache_folder
from zephyr_kit.card import write_card
from zephyr_kit.checkpoint import Checkpoints
from zephyr_kit.config import plain
from zephyr_kit.corpus import Corpus, refuse_bad_rows
from zephyr_kit.devices import give_back_memory
from zephyr_kit.disk import let_others_read, put
from zephyr_kit.engine import Trainer
from zephyr_kit.feed import Feed
from zephyr_kit.gate import refuse
from zephyr_kit.inspection import Inspection
from zephyr_kit.lengths import measured
from zephyr_kit.loop import Loop
from zephyr_kit.metrics import MetricLog
from zephyr_kit.mismatched import Mismatched
from zephyr_kit.observe import Narrator, Run
from zephyr_kit.plan import Plan
from zephyr_kit.plugins import Plugins
from zephyr_kit.portion import Portion
from zephyr_kit.preset import Stage
from zephyr_kit.protocols import Policy, Start, Tokenizer, broken_laws, survey_of, updates_bfloat16
from zephyr_kit.records import write_json
from zephyr_kit.reference import ReferenceScores, Scoring, scorer_of
from zephyr_kit.runs import BROKEN_LAWS, StageFolder
from zephyr_kit.schedule import learning_rate
from zephyr_kit.score_store import ScoreStore
from zephyr_kit.stage_data import list_quarantined, prepare_part, summary
from zephyr_kit.stages import TrainStage
from zephyr_kit.stopping import Stop
from zephyr_kit.trees import Examples
from zephyr_kit.world import World


@dataclass(frozen=True)
class Training:
    """A stage that trains, with everything it needs at hand."""

    run_name: str
    stage: Stage
    task: TrainStage
    folder: StageFolder
    start: Start
    seed: int
    device: torch.device
    plugins: Plugins
    narrator: Narrator
    before: tuple[str, ...] = ()
    """The stages that the model has been through."""
    world: World = field(default_factory=World)
    stop: Stop = field(default_factory=Stop)

    def run(self) -> None:
        """Train, save the model, and mark the stage as done."""
        tokenizer = self.stage.model.tokenizer(self.start)
        with self.world.leader_first():
            corpus = self._corpus(self.task.data, tokenizer, "data")
            held_out = self._corpus(self.task.held_out, tokenizer, "held_out") if self.task.held_out else None
        if self.world.leads and (breaks := broken_laws(self.task.objective)):
            write_json(self.folder.path / BROKEN_LAWS, breaks)
        plan = self.task.train.plan(corpus.lengths, self.seed)
        # What the stage before it held goes before this one's comes.
        give_back_memory()
        corpora = {"data": corpus, **({"held_out": held_out} if held_out is not None else {})}
        mismatched = self._mismatched(corpora)
        with self.narrator.track("loading the model"):
            policy = self._policy()
        references = self._references(policy, corpora)
        others = self._feeds(mismatched, self._references(policy, mismatched, ", mismatched"))
        trainer = self._trainer(policy, plan)
        checkpoints = self._checkpoints()
        self._resume(trainer, checkpoints)
        feeds = self._feeds(corpora, references, others)
        self._loop(trainer, plan, feeds["data"], feeds.get("held_out"), checkpoints).run()
        self._finish(policy, corpus, plan)
        best = checkpoints.best()
        if best is not None:
            self.narrator.say(f"best by {self.task.train.keep_best}: step {best}, in {self.folder.checkpoints}")

    def _policy(self) -> Policy:
        policy = self.stage.model.load(self.device, start=self.start, train=True)
        if self.task.reference == "live":
            policy.keep_reference()
        if self.world.num_in_team > 1:
            policy.share_rows(self.world.team_group())
        if self._is_sharded:
            policy.shard(self.world.mesh(self.device.type, hybrid=self.task.train.sharding == "hybrid"))
        return policy

    @property
    def _is_sharded(self) -> bool:
        return self.world.size > 1 and self.task.train.sharding in ("sharded", "hybrid")

    def _corpus(self, portions: Sequence[Portion], tokenizer: Tokenizer, name: str) -> Corpus:
        corpus = prepare_part(self.task, portions, tokenizer, self.narrator, name)
        if self.world.leads:
            self._account_for(corpus, portions, tokenizer, name)
        return corpus

    def _account_for(self, corpus: Corpus, portions: Sequence[Portion], tokenizer: Tokenizer, name: str) -> None:
        """Write down what became of every row; refuse what must not be trained on."""
        quarantine = self.folder.path / f"{name}.quarantine.jsonl"
        list_quarantined(corpus, quarantine)
        (self.folder.path / f"{name}.json").write_text(json.dumps(corpus.ledger, ensure_ascii=False, indent=1), "utf-8")
        where = f"stages.{self.stage.name}.{name}"
        refuse_bad_rows(corpus, allowed=self.task.bad_rows, name=where, quarantine=quarantine)
        inspection = Inspection(corpus, tokenizer, portions)
        if len(corpus):
            write_json(self.folder.path / f"{name}.lengths.json", [plain(lengths) for lengths in measured(inspection.lengths)])
        if name == "data":
            refuse(self.task.gate, inspection, name=where, listing=self.folder.path / "data.gate.jsonl")
        self.narrator.say(summary(name, corpus.ledger, quarantine))

    def _mismatched(self, corpora: Mapping[str, Examples]) -> dict[str, Examples]:
        """Each corpus as the objective wants it surveyed, if it does."""
        survey = survey_of(self.task.objective)
        if survey is None or survey.surveys != "mismatched":
            return {}
        where = f"stages.{self.stage.name}"
        return {name: Mismatched(trees, self.task.max_length, f"{where}.{name}") for name, trees in corpora.items()}

    def _references(self, policy: Policy, corpora: Mapping[str, Examples], kind: str = "") -> dict[str, ReferenceScores]:
        """Reference scores of every corpus, before the first step, if the stage wants them cached."""
        if not corpora or not self.task.objective.needs_reference or self.task.reference == "live":
            return {}
        train = self.task.train
        with closing(self._score_store()) as store:
            scoring = Scoring(policy, store, self.device, train.capacity, train.share_prompts, self.narrator, self.world)
            return {name: scoring.scores_of(corpus, name + kind) for name, corpus in corpora.items()}

    def _score_store(self) -> ScoreStore:
        began = "" if self.start.folder is None else f", which starts from {self.start.folder.absolute()}"
        about = f"stage {self.stage.name} of {self.run_name}{began}"
        return ScoreStore(cache_folder("references"), scorer_of(self.stage.model, self.start), about)

    def _trainer(self, policy: Policy, plan: Plan) -> Trainer:
        train = self.task.train
        return Trainer(
            policy,
            self.task.objective,
            optimizer=lambda parameters: train.optimizer.build(parameters, learning_rate=train.learning_rate),
            learning_rate=lambda step: learning_rate(
                step, peak=train.learning_rate, schedule=train.schedule, warmup=train.warmup, num_steps=plan.num_steps
            ),
            seed=self.seed,
            clip=train.clip,
            world=self.world,
            updates_bfloat16=updates_bfloat16(train.optimizer),
        )

    def _checkpoints(self) -> Checkpoints:
        train, log = self.task.train, MetricLog(self.folder.metrics)
        best = train.keep_best
        worth = None if best is None else lambda: log.worth(best)
        return Checkpoints(self.folder.checkpoints, train.keep_checkpoints, self.folder.key() or {}, (log.path,), worth, self.world)

    def _resume(self, trainer: Trainer, checkpoints: Checkpoints) -> None:
        state, remarks = checkpoints.newest()
        for remark in remarks:
            self.narrator.say(remark)
        if state is not None:
            trainer.load_state(state)
        if self.world.leads:
            self._rewind(trainer.num_steps_taken, resumed=state is not None)

    def _rewind(self, step: int, *, resumed: bool) -> None:
        found = MetricLog(self.folder.metrics).rewind(step)
        lost = found.last_step - step
        if resumed or lost > 0:
            again = f"; {lost} that came after are taken again" if lost > 0 else ""
            self.narrator.say(f"going on after step {step}{again}")
        if told := found.told():
            self.narrator.say(f"{self.folder.metrics}: {told}; curves and reports lack that, the training lacks nothing")

    def _feeds(
        self, corpora: Mapping[str, Examples], references: Mapping[str, ReferenceScores], mismatched: Mapping[str, Feed] | None = None
    ) -> dict[str, Feed]:
        train, others = self.task.train, mismatched or {}

        def feed(name: str, trees: Examples) -> Feed:
            scores, other = references.get(name), others.get(name)
            return Feed(trees, self.task.objective, train.capacity, train.share_prompts, self.device, self.world, scores, other)

        return {name: feed(name, trees) for name, trees in corpora.items()}

    def _loop(self, trainer: Trainer, plan: Plan, feed: Feed, held_out: Feed | None, checkpoints: Checkpoints) -> Loop:
        about = Run(self.run_name, self.stage.name, self.folder.path, plan.num_steps, trainer.num_steps_taken, self.stage.settings)
        log = MetricLog(self.folder.metrics)
        return Loop(
            about, self.task.train, trainer, plan, feed, held_out, checkpoints, log, self.plugins, self.narrator, self.stop
        )

    def _finish(self, policy: Policy, corpus: Corpus, plan: Plan) -> None:
        staging = self.folder.path / ".model"
        if self.world.leads:
            shutil.rmtree(staging, ignore_errors=True)
        with self.narrator.track("saving the model"):
            if self.world.leads or self._is_sharded:
                policy.save(staging)
        if self.world.leads:
            self._conclude(staging, corpus, plan)

    def _conclude(self, staging: Path, corpus: Corpus, plan: Plan) -> None:
        """Put the model in its place, with its card, and mark the stage as done."""
        last = _last(MetricLog(self.folder.metrics).lines())
        write_card(
            staging,
            run=self.run_name,
            stage=self.stage.name,
            before=self.before,
            seed=self.seed,
            settings=self.stage.settings,
            ledger=corpus.ledger,
            last=last,
            breaks=broken_laws(self.task.objective),
        )
        let_others_read(staging)
        shutil.rmtree(self.folder.model, ignore_errors=True)
        put(staging, self.folder.model)
        self.folder.finish({"steps": plan.num_steps, **last})


def _last(lines: Iterator[Mapping[str, Any]]) -> dict[str, Any]:
    """The newest value of every metric."""
    newest: dict[str, Any] = {}
    for line in lines:
        newest.update(line)
    beside = ("step", "tokens_per_second", "num_tokens", "num_targets", "memory", "wait_share", "wait_seconds", "skipped", "rows")
    return {name: value for name, value in newest.items() if name not in beside}
