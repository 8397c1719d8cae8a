"""Our side: what a stage of `zkit run` does, by the engine's own parts, with everything at its default."""

from __future__ import annotations

import tempfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.models import draw_adapters
from benchmarks.workloads import SEED

if TYPE_CHECKING:
    from benchmarks.cases import Case, Work
    from benchmarks.trace import Trace, Watch
    from zephyr_kit.engine import Trainer
    from zephyr_kit.feed import Feed


def train(case: Case, work: Work, watch: Watch) -> Trace:
    """Take the steps, report each as a run does, and note when it ends."""
    from zephyr_kit.meter import Meter
    from zephyr_kit.metrics import MetricLog

    with tempfile.TemporaryDirectory() as folder:
        trainer, feed = open_stage(case, work, Path(folder), watch)
        meter, log = Meter(num_steps=work.num_steps, epoch=work.epoch), MetricLog(Path(folder) / "metrics.jsonl")
        for step in feed.steps(work, first=0):
            log.append(report.facts() for report in meter.add(trainer.step(step)))
            watch.step_ended()
        log.append(report.facts() for report in meter.flush())
        lines = list(log.lines())
    return watch.trace([line["loss"] for line in lines], [line["gradient_norm"] for line in lines])


def open_stage(case: Case, work: Work, folder: Path, watch: Watch) -> tuple[Trainer, Feed]:
    """The model and its reference scores, ready for the first step."""
    import torch

    from zephyr_kit.engine import Trainer
    from zephyr_kit.feed import Feed
    from zephyr_kit.protocols import Start
    from zephyr_kit.world import World

    stage, device = case.stage(), torch.device(case.device)
    task: Any = stage.task
    policy = stage.model.load(device, start=Start(seed=SEED), train=True)
    draw_adapters(policy.module.named_parameters())
    watch.loaded()
    trainer = Trainer(
        policy,
        task.objective,
        optimizer=lambda parameters: task.train.optimizer.build(parameters, learning_rate=case.learning_rate),
        learning_rate=lambda _: case.learning_rate,
        seed=SEED,
        clip=task.train.clip,
    )
    reference = _reference(policy, task, work, folder, device) if task.objective.needs_reference else None
    return trainer, Feed(work.corpus, task.objective, task.train.capacity, task.train.share_prompts, device, World(), reference)


def _reference(policy: Any, task: Any, work: Work, folder: Path, device: Any) -> Any:
    from benchmarks.cases import Silent
    from zephyr_kit.reference import Scoring
    from zephyr_kit.score_store import ScoreStore

    with closing(ScoreStore(folder, {"benchmark": folder.name}, "a benchmark")) as store:
        scoring = Scoring(policy, store, device, task.train.capacity, task.train.share_prompts, Silent())
        return scoring.scores_of(work.corpus, "data")

