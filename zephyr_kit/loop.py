"""Steps until the plan is fulfilled, with reports, looks at held-out data, and checkpoints between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from zephyr_kit.checkpoint import Checkpoints
from zephyr_kit.devices import give_back_memory, memory_in_use
from zephyr_kit.engine import LackError, NumbersError, Totals, Trainer, TrainingError
from zephyr_kit.exits import Exit
from zephyr_kit.feed import Feed, StepWork
from zephyr_kit.meter import Meter
from zephyr_kit.metrics import HELD_OUT, MetricLog, as_text
from zephyr_kit.observe import Narrator, Report, Run
from zephyr_kit.plan import Plan, pack, together
from zephyr_kit.plugins import Plugins
from zephyr_kit.records import read_json, write_json
from zephyr_kit.stages import Train
from zephyr_kit.stopping import Stop, Stopped
from zephyr_kit.world import World

NUM_ROWS_NAMED = 3
NUM_SKIPPED = 3
"""Steps without an update, one after another, that stop a run."""
NUM_STEPS_TO_MOVE = 10
"""After so many, some weight must have changed."""

T = TypeVar("T")


@dataclass(frozen=True)
class Loop:
    """The steps of one stage."""

    about: Run
    train: Train
    trainer: Trainer
    plan: Plan
    feed: Feed
    held_out: Feed | None
    checkpoints: Checkpoints
    log: MetricLog
    plugins: Plugins
    narrator: Narrator
    stop: Stop

    @property
    def world(self) -> World:
        """The ranks that take the steps together."""
        return self.trainer.world

    def run(self) -> None:
        """Run, and tell observers of the start, of every step, and of the end."""
        error: BaseException | None = None
        try:
            self._tell("zkit_run_started", run=self.about)
            with self.stop.later("this step is saved"):
                self._run()
        except BaseException as caught:
            error = caught
            raise
        finally:
            self._tell("zkit_run_ended", run=self.about, error=error)

    def _run(self) -> None:
        first, train, owed = self.trainer.num_steps_taken, self.train, False
        skipped = self.world.word(self.log.num_skipped())
        memory = partial(memory_in_use, self.feed.device)
        asked: Exit | None = None
        with self.checkpoints.saving() as save:
            if self.world.word(self._looks_at(first) and not self.log.has_look(first)):
                self._look(first)  # the run was left before it came to that
            feed = self._fitting_feed()
            meter = Meter(num_steps=self.plan.num_steps, epoch=self.plan.epoch, rows=self._rows, num_skipped=skipped, memory=memory)
            for totals in self._steps(feed):
                self._report(meter.add(totals))
                step, asked = totals.step, self._requested()
                if step - first == NUM_STEPS_TO_MOVE:
                    self._report(meter.flush())
                    self._refuse_stillness()
                owed = owed or asked is not None or self._is_due(step, train.checkpoint_every)
                look = self._looks_at(step)
                if owed or look:
                    # Flushed first: what stops the run must do so before a checkpoint is kept.
                    self._report(meter.flush())
                # Nothing among steps that may yet have to be taken back, unless these are the last ones taken here.
                kept = owed and (not meter.num_skipped or asked is not None or step == self.plan.num_steps)
                if kept:
                    save(self.trainer.state(), goes_on=asked is None and step < self.plan.num_steps)
                owed = owed and not kept
                if asked is not None:
                    break
                if look:
                    self._look(step)
                if kept or look:
                    meter.restart()
        if asked is not None:
            self.world.word()  # a rank that leaves takes the others with it: the leader's checkpoint comes first
            raise Stopped(asked)

    def _requested(self) -> Exit | None:
        """Whether any rank was asked to stop; all stop after the same step."""
        code = self.world.highest(int(self.stop.requested() or 0))
        return next((each for each in Exit if code and each == code), None)

    def _fitting_feed(self) -> Feed:
        """In batches that memory suffices for, as far as is known before the first step."""
        feed = self._as_found_to_fit(self.feed)
        return self._try_largest(feed) if feed.device.type == "cuda" else feed

    def _steps(self, feed: Feed) -> Iterator[Totals]:
        """Every step; in smaller batches from where memory does not suffice, the step begun anew."""
        while self.trainer.num_steps_taken < self.plan.num_steps:
            lack = ""
            for work in feed.steps(self.plan, first=self.trainer.num_steps_taken):
                totals, lack = self._attempt(partial(self.trainer.step, work), feed)
                if totals is None:
                    break
                yield totals
            feed = self._smaller(feed, lack) if lack else feed

    def _attempt(self, take: Callable[[], T], feed: Feed) -> tuple[T | None, str]:
        """What is taken; or none, and what memory lacked. The error's own frames, which hold tensors, are let go."""
        try:
            return take(), ""
        except torch.OutOfMemoryError as error:
            return None, str(error).splitlines()[0]
        except LackError as error:
            write_json(self._fits, {"tokens_per_batch": self.feed.capacity, "fits": self._less(feed, error.lack)})
            raise

    @property
    def _fits(self) -> Path:
        """What a start leaves to the next one, when ranks must begin anew together."""
        return self.about.folder / "memory.json"

    def _as_found_to_fit(self, feed: Feed) -> Feed:
        """In batches as small as an earlier start has found to fit into the memory, if it was told of as large ones."""
        if not self._fits.exists():
            return feed
        found = read_json(self._fits, "remove it, and the same command goes on")
        if found["tokens_per_batch"] != feed.capacity:
            return feed
        self.narrator.say(f"stages.{self.about.stage}: in batches of up to {found['fits']:,} tokens, since more did not fit into memory")
        return replace(feed, capacity=found["fits"])

    def _try_largest(self, feed: Feed) -> Feed:
        """Before the first step: what would lack memory after hours shall do so now."""
        while True:
            cut = partial(pack, capacity=feed.capacity, multiple=self.world.num_teams)
            packs = [batch for step in self.plan.some_steps() for batch in cut(step, feed.lengths)]
            largest = max(packs, key=lambda batch: int(feed.lengths[batch].sum()))
            work = feed.work(largest, lambda members, _: [list(members)] * self.world.num_teams)
            _, lack = self._attempt(partial(self.trainer.try_out, work), feed)
            if not lack:
                return feed
            feed = self._smaller(feed, lack)

    def _smaller(self, feed: Feed, lack: str) -> Feed:
        """The same work in batches of half as many tokens, or of one example each."""
        give_back_memory()
        capacity = self._less(feed, lack)
        now = f"in batches of up to {capacity:,} tokens from here on, the step begun anew"
        self.narrator.say(f"{self._where}: out of memory ({lack}); {now}")
        return replace(feed, capacity=capacity)

    def _less(self, feed: Feed, lack: str) -> int:
        """Half as many tokens, or those of one example."""
        longest = int(feed.lengths.max())
        capacity = max(feed.capacity // 2, longest)
        if capacity >= feed.capacity:
            raise TrainingError(
                f"{self._where}: not even one example of {longest:,} tokens fits into memory ({lack}); "
                "set a smaller max_length, activation_checkpointing, or see what `zkit plan` finds to fit"
            )
        return capacity

    @property
    def _where(self) -> str:
        return f"stages.{self.about.stage}, step {self.trainer.num_steps_taken + 1}"

    def _is_due(self, step: int, every: int) -> bool:
        return step > 0 and (step == self.plan.num_steps or step % every == 0)

    def _looks_at(self, step: int) -> bool:
        return self.held_out is not None and self._is_due(step, self.train.held_out_every)

    def _report(self, reports: Sequence[Report]) -> None:
        if self.world.leads:
            self.log.append(report.facts() for report in reports)
        if reports:
            # Not by an observer, which only the leader has: each machine counts its own ranks' steps.
            self.world.took(self.about.stage, reports[-1].step)
        for report in reports:
            self._tell("zkit_step_ended", run=self.about, report=report)
            self._refuse_unknown_best(report.metrics)
            if report.num_skipped:
                self.narrator.say(f"{self.about.stage} step {report.step} changes no weight: {_not_finite(report)}")
            if report.num_skipped >= NUM_SKIPPED:
                raise NumbersError(
                    f"stages.{self.about.stage}, step {report.step}: {NUM_SKIPPED} steps one after another had no finite loss or gradient; "
                    f"the last checkpoint stands, where there is one: lower the learning rate, or look at the rows of these steps, "
                    f"which {self.log.path} names"
                )

    def _refuse_unknown_best(self, names: Iterable[str]) -> None:
        try:
            self.train.refuse_unknown_best(names, held_out=self.held_out is not None)
        except ValueError as error:
            raise TrainingError(f"[stages.{self.about.stage}] {error}") from error

    def _refuse_stillness(self) -> None:
        if not self.trainer.has_moved():
            raise TrainingError(
                f"stages.{self.about.stage}: after {NUM_STEPS_TO_MOVE} steps no trained weight has changed; "
                f"the learning rate is too low to be felt, or nothing that is trained has a part in the loss"
            )

    def _look(self, step: int) -> None:
        """Look at held-out data; that may be left, for it is done again."""
        feed = self.held_out
        assert feed is not None, "it is asked whether to look"
        with self.stop.at_once() if self.world.size == 1 else nullcontext():
            packs = pack(range(len(feed.corpus)), feed.lengths, feed.capacity)
            means = self.trainer.evaluate(_Works(feed, list(together(packs, self.world.num_teams))))
        if self.world.leads:
            self.log.append([{"step": step, **{f"{HELD_OUT}{name}": value for name, value in means.items()}}])
        self._tell("zkit_held_out", run=self.about, step=step, metrics=means)

    def _rows(self, step: int) -> list[str]:
        """Where the rows of a step stand."""
        return [self.feed.corpus.origins[index] for index in self.plan.step(step)]

    def _tell(self, hook: str, **facts: Any) -> None:
        if not self.world.leads:
            return
        for complaint in self.plugins.tell(hook, **facts):
            self.narrator.say(complaint)


@dataclass(frozen=True)
class _Works:
    """Work made each time that it is gone through, so that little of it is on the device at once."""

    feed: Feed
    groups: Sequence[Sequence[int]]

    def __iter__(self) -> Iterator[StepWork]:
        return map(self.feed.step, self.groups)


def _not_finite(report: Report) -> str:
    named = [*report.rows[:NUM_ROWS_NAMED], *(["…"] if len(report.rows) > NUM_ROWS_NAMED else [])]
    figures = (f"{name} {as_text(value)}" for name, value in (("loss", report.loss), ("gradient norm", report.gradient_norm)))
    return f"{', '.join(figures)}; its rows are {', '.join(named)}"
