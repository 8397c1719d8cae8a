"""What the data of a stage comes to: steps, tokens, batches; and the largest of these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from zephyr_kit.batch import Tree
from zephyr_kit.corpus import Corpus
from zephyr_kit.plan import Indices, Plan, pack
from zephyr_kit.stages import Train, TrainStage

PROMPT_SHARE = 0.25
"""Of an example that is made up."""


@dataclass(frozen=True)
class Workload:
    """What the data of a stage comes to."""

    num_examples: int
    num_steps: int
    epochs: float
    tokens_per_epoch: int
    """As they are computed: shared prompts once."""
    tokens_per_step: int
    batches_per_step: float
    packing: float
    """The share of the batches' room that is filled."""
    saved: float
    """The share of the tokens that sharing prompts saves."""
    longest: int
    """Tokens of the longest example."""


@dataclass(frozen=True)
class Rows:
    """A corpus under the settings of a stage."""

    corpus: Corpus
    train: Train
    seed: int

    @cached_property
    def plan(self) -> Plan:
        """The steps."""
        return self.train.plan(self.corpus.lengths, self.seed)

    @cached_property
    def lengths(self) -> Indices:
        """Tokens that each example takes in a row."""
        return self.corpus.row_lengths(share_prompts=self.train.share_prompts)

    @cached_property
    def steps(self) -> list[list[int]]:
        """Some steps, or all."""
        return self.plan.some_steps()

    @property
    def fullest_step(self) -> int:
        """Tokens of the largest step."""
        return max(int(self.lengths[step].sum()) for step in self.steps)

    def packs(self, capacity: int, num_teams: int = 1) -> list[list[list[int]]]:
        """The batches of each step, as many for each team of devices."""
        return [pack(step, self.lengths, capacity, multiple=num_teams) for step in self.steps]

    def largest(self, packs: Sequence[Sequence[Sequence[int]]]) -> tuple[Tree, ...]:
        """The batch with the most tokens."""
        members = max((batch for step in packs for batch in step), key=lambda batch: int(self.lengths[batch].sum()))
        return tuple(self.corpus[index] for index in members)

    def workload(self, packs: Sequence[Sequence[Sequence[int]]], capacity: int) -> Workload:
        """The figures."""
        whole = int(self.corpus.row_lengths(share_prompts=False).sum())
        tokens, batches = int(self.lengths.sum()), sum(map(len, packs))
        fillings = [int(self.lengths[batch].sum()) for step in packs for batch in step]
        filled, room = sum(fillings), sum(max(capacity, filling) for filling in fillings)
        return Workload(
            len(self.corpus),
            self.plan.num_steps,
            self.plan.epoch(self.plan.num_steps - 1),
            tokens,
            round(filled / len(packs)),
            batches / len(packs),
            filled / room,
            1 - tokens / whole,
            int(self.lengths.max()),
        )


def made_up(task: TrainStage, capacity: int) -> tuple[Tree, ...]:
    """The largest batch that there can be of data that is not at hand: examples as long as they may be."""
    completions = task.objective.completions
    longest = _tree(task.max_length, completions)
    row = longest.row_length(share_prompts=task.train.share_prompts)
    most = task.train.examples_per_step or capacity
    trees = [longest] * min(most, max(1, capacity // row))
    left = capacity - row * len(trees)
    shorter = task.max_length * left // row
    return (*trees, _tree(shorter, completions)) if len(trees) < most and shorter > 1 / PROMPT_SHARE else tuple(trees)


def most_in_a_step(task: TrainStage) -> int:
    """Tokens that a step can hold at most, as far as the settings tell."""
    if task.train.tokens_per_step is not None:
        return task.train.tokens_per_step + task.max_length * task.objective.completions
    assert task.train.examples_per_step is not None
    longest = _tree(task.max_length, task.objective.completions)
    return task.train.examples_per_step * longest.row_length(share_prompts=task.train.share_prompts)


def _tree(length: int, completions: int) -> Tree:
    prompt = int(length * PROMPT_SHARE)
    reply = np.zeros(length - prompt, np.int32)
    return Tree(np.zeros(prompt, np.int32), (reply,) * completions, (np.ones(len(reply), np.bool_),) * completions)
