"""Which examples make up which step, and how a step is cut into batches.

The order is a pure function of (seed, epoch); the steps, of the order and the lengths. How
a step is cut into batches is the machine's affair and changes no result.
"""

from __future__ import annotations

import heapq
import itertools
import math
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]

NUM_STEPS_LOOKED_AT = 200
"""Where a figure, or the largest batch, is wanted of a longer stage."""


@dataclass(frozen=True)
class Plan:
    """The steps of a stage: epochs follow each other without a gap, so that steps stay full.

    `lengths` (examples,) are in tokens, a shared prompt counted once. A step holds
    `examples_per_step` examples, or as many as keep the running total of tokens nearest to
    a multiple of `tokens_per_step`; only the last one may hold fewer.
    """

    lengths: Indices
    seed: int
    examples_per_step: int | None = None
    tokens_per_step: int | None = None
    epochs: float | None = 1.0
    steps: int | None = None

    @property
    def num_steps(self) -> int:
        """How many optimiser steps the stage takes."""
        return len(self._bounds) - 1

    def step(self, number: int) -> list[int]:
        """The examples of step `number`, counted from 0, in order."""
        first, end = self._bounds[number : number + 2]
        size = len(self.lengths)
        drawn: list[int] = []
        for epoch in range(first // size, (end - 1) // size + 1):
            order = epoch_order(size, seed=self.seed, epoch=epoch)
            drawn += order[max(0, first - epoch * size) : end - epoch * size].tolist()
        return drawn

    def some_steps(self) -> list[list[int]]:
        """The examples of all steps, or of as many as are looked at, evenly spread."""
        numbers = np.linspace(0, self.num_steps - 1, min(self.num_steps, NUM_STEPS_LOOKED_AT)).astype(int)
        return [self.step(int(number)) for number in numbers]

    def epoch(self, number: int) -> float:
        """How many times the data has been seen when step `number` has ended."""
        return float(self._bounds[number + 1]) / len(self.lengths)

    @cached_property
    def _bounds(self) -> Indices:
        """Positions, in the endless stream of epochs, at which steps begin, and the end."""
        if self.examples_per_step is not None:
            total = self._num_examples(self.examples_per_step)
            return np.append(np.arange(0, total, self.examples_per_step), total)
        assert self.tokens_per_step is not None
        return self._starts_by_tokens(self.tokens_per_step)

    def _num_examples(self, per_step: int) -> int:
        if self.steps is not None:
            return self.steps * per_step
        assert self.epochs is not None
        return max(1, round(self.epochs * len(self.lengths)))

    def _starts_by_tokens(self, budget: int) -> Indices:
        per_epoch = int(self.lengths.sum())
        wanted = self.steps * budget if self.steps is not None else max(1, round((self.epochs or 1) * per_epoch))
        num_epochs = math.ceil(wanted / per_epoch)
        while True:
            stream = [self.lengths[epoch_order(len(self.lengths), seed=self.seed, epoch=epoch)] for epoch in range(num_epochs)]
            ends = np.cumsum(np.concatenate(stream))
            cuts = np.unique(np.append(0, _nearest(ends, np.arange(budget, ends[-1] + 1, budget))))
            if self.steps is None:
                total = _nearest(ends, np.array([wanted]))
                return np.append(cuts[cuts < total], total)
            if len(cuts) > self.steps:
                return cuts[: self.steps + 1]
            # Examples longer than a step's budget took several marks each.
            num_epochs *= 2


def _nearest(ends: Indices, marks: Indices) -> Indices:
    """After how many examples, at least one, the running total of tokens is nearest to each mark."""
    after = np.searchsorted(ends, marks)
    before_is_nearer = (after > 0) & (marks - ends[np.maximum(after - 1, 0)] <= ends[after] - marks)
    nearest: Indices = np.where(before_is_nearer, after, after + 1)
    return nearest


@lru_cache(maxsize=2)
def epoch_order(count: int, *, seed: int, epoch: int) -> Indices:
    """A permutation of the examples for one epoch."""
    order = np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(count)
    order.flags.writeable = False
    return order


def pack(indices: Sequence[int], lengths: npt.ArrayLike, capacity: int, *, multiple: int = 1) -> list[list[int]]:
    """Pack the examples of a step into batches of at most `capacity` tokens each.

    Best fit, the longest first; then as many batches as best fit needs (rounded up to
    `multiple`, the number of ranks) are filled evenly, always the emptiest next, as long as
    that also fits. An example longer than the capacity is a batch of its own.
    """
    sizes = np.asarray(lengths)
    order = sorted(indices, key=lambda i: (-int(sizes[i]), i))
    tight = _best_fit(order, sizes, capacity)
    count = math.ceil(len(tight) / multiple) * multiple
    return _even(order, sizes, capacity, count) or tight + [[] for _ in range(count - len(tight))]


def together(packs: Sequence[list[int]], count: int) -> Iterator[list[int]]:
    """The examples of `count` packs at a time: one for each rank."""
    return (list(itertools.chain.from_iterable(packs[first : first + count])) for first in range(0, len(packs), count))


def _best_fit(order: Sequence[int], sizes: npt.NDArray[np.int64], capacity: int) -> list[list[int]]:
    packs: list[list[int]] = []
    rooms: list[tuple[int, int]] = []
    for index in order:
        size = int(sizes[index])
        slot = bisect_left(rooms, (size, 0))
        if slot == len(rooms):
            packs.append([index])
            insort(rooms, (max(0, capacity - size), len(packs) - 1))
        else:
            room, number = rooms.pop(slot)
            packs[number].append(index)
            insort(rooms, (room - size, number))
    return packs


def _even(order: Sequence[int], sizes: npt.NDArray[np.int64], capacity: int, count: int) -> list[list[int]] | None:
    packs: list[list[int]] = [[] for _ in range(count)]
    fullness = [(0, number) for number in range(count)]
    for index in order:
        filled, number = heapq.heappop(fullness)
        filled += int(sizes[index])
        if filled > capacity and packs[number]:
            return None
        packs[number].append(index)
        heapq.heappush(fullness, (filled, number))
    return packs
