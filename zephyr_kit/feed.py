"""Batches made ready while the device works on the ones before."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TypeVar

import torch
from torch import Tensor

from zephyr_kit.batch import Batch, idle, lay_out
from zephyr_kit.plan import Indices, Plan, pack
from zephyr_kit.protocols import Objective, num_units
from zephyr_kit.reference import ReferenceScores
from zephyr_kit.trees import Examples
from zephyr_kit.world import World

Item = TypeVar("Item")
Cut = Callable[[Sequence[int], Indices], list[list[int]]]
"""The batches of a step, from its examples and the lengths of all."""


@dataclass(frozen=True, slots=True)
class Work:
    """One micro-batch, with cached reference scores (M,) if the stage has them."""

    batch: Batch
    reference_M: Tensor | None = None

    def to(self, device: torch.device) -> Work:
        """The same on another device."""
        return Work(self.batch.to(device), None if self.reference_M is None else self.reference_M.to(device, non_blocking=True))


@dataclass(frozen=True, slots=True)
class StepWork:
    """This rank's share of a step, and how many units the whole step has over all ranks."""

    works: Sequence[Work]
    num_units: int
    num_tokens: int
    num_targets: int
    mismatched: Sequence[Work] = ()
    """Its examples with the completions of others, for an objective that surveys these."""
    num_mismatched: int = 0
    """Units of these, of the whole step over all ranks."""


@dataclass(frozen=True)
class Feed:
    """Turns indices of a corpus into work for this rank."""

    corpus: Examples
    objective: Objective
    capacity: int
    share_prompts: bool
    device: torch.device
    world: World
    reference: ReferenceScores | None = None
    mismatched: Feed | None = None

    @cached_property
    def lengths(self) -> Indices:
        """Tokens that each example takes in a row."""
        return self.corpus.row_lengths(share_prompts=self.share_prompts)

    def steps(self, plan: Plan, *, first: int) -> Iterator[StepWork]:
        """The work of each step from `first` on, prepared in the background."""
        return ahead(self.step(plan.step(number)) for number in range(first, plan.num_steps))

    def step(self, indices: Sequence[int]) -> StepWork:
        """The work for these examples."""
        return self.work(indices, partial(pack, capacity=self.capacity, multiple=self.world.num_teams))

    def work(self, indices: Sequence[int], cut: Cut) -> StepWork:
        """The work for these examples in the batches that they are cut into; one without examples is what a rank does that has none."""
        whole = self._works(indices, cut)
        mismatched = self.mismatched._works(indices, cut) if self.mismatched is not None else []
        return StepWork(
            self._mine(whole),
            sum(num_units(self.objective, work.batch) for work in whole),
            sum(len(work.batch.tokens_T) for work in whole if work.batch.num_sequences),
            sum(len(work.batch.target_M) for work in whole),
            self._mine(mismatched),
            sum(num_units(self.objective, work.batch) for work in mismatched),
        )

    def _works(self, indices: Sequence[int], cut: Cut) -> list[Work]:
        return [self._work(members) for members in cut(indices, self.lengths)]

    def _mine(self, works: Sequence[Work]) -> list[Work]:
        return [work.to(self.device) for work in self.world.mine(works)]

    def _work(self, members: Sequence[int]) -> Work:
        batch = lay_out([self.corpus[i] for i in members], share_prompts=self.share_prompts) if members else idle()
        return Work(batch, self.reference.of(members) if self.reference is not None else None)


def ahead(items: Iterable[Item], *, depth: int = 2) -> Iterator[Item]:
    """Make items in a background thread, at most `depth` before they are asked for."""
    ready: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(depth)
    stop = threading.Event()

    def make() -> None:
        error: BaseException | None = None
        try:
            for item in items:
                if not _offer(ready, (item, None), stop):
                    return
        except BaseException as caught:  # raised again where the items are used
            error = caught
        _offer(ready, (None, error), stop)

    thread = threading.Thread(target=make, name="zkit-feed", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item
    finally:
        stop.set()
        thread.join()


def _offer(ready: queue.Queue[Item], item: Item, stop: threading.Event) -> bool:
    while not stop.is_set():
        try:
            ready.put(item, timeout=0.1)
        except queue.Full:
            continue
        return True
    return False
