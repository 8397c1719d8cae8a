"""An objective may compare with a mean over the whole step, however that is cut."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from objectives import feed_of
from tiny import ListCorpus, TablePolicy, random_trees
from torch import Tensor
from zkit_optimizers.adamw import AdamW
from zkit_preference.bco import Bco

from zephyr_kit import Unit
from zephyr_kit.batch import lay_out
from zephyr_kit.engine import Trainer
from zephyr_kit.feed import Feed, StepWork
from zephyr_kit.mismatched import Mismatched, OnePromptError
from zephyr_kit.protocols import Outcome, Scores
from zephyr_kit.testing import ObjectiveLaws

TREES = random_trees(7, completions=2, vocabulary=16)


@dataclass(frozen=True)
class Listening:
    """Measures log-probabilities, and remembers what mean it was given."""

    surveys: Literal["own", "mismatched"] | None
    heard: list[float] = field(default_factory=list)

    completions: ClassVar[int] = 2
    unit: ClassVar[Unit] = Unit.EXAMPLE
    needs_reference: ClassVar[bool] = False

    def measure(self, policy: Scores, reference: Scores | None) -> Tensor:
        assert not policy.logp_M.requires_grad
        return policy.sums().sum()

    def given(self, mean: Tensor) -> Callable[[Scores, Scores | None], Outcome]:
        self.heard.append(float(mean))
        return partial(self._loss, mean)

    def __call__(self, policy: Scores, reference: Scores | None) -> Outcome:
        raise AssertionError("it was given no mean")

    def _loss(self, mean: Tensor, policy: Scores, reference: Scores | None) -> Outcome:
        return Outcome((policy.sums() - mean).square().sum())


class OfTokens(Listening):
    """The same, by the token."""

    unit: ClassVar[Unit] = Unit.TOKEN


@dataclass
class Held:
    """Work made anew each time, of which no more than two steps' may be held."""

    feed: Feed
    held: list[weakref.ref[Tensor]] = field(default_factory=list)

    def __iter__(self) -> Iterator[StepWork]:
        for index in range(len(TREES)):
            assert sum(each() is not None for each in self.held) <= 2
            work = self.feed.step([index])
            self.held.append(weakref.ref(work.works[0].batch.tokens_T))
            yield work


class Counting(TablePolicy):
    """Counts how often its reference is asked."""

    asked = 0

    def reference(self) -> Any:
        self.asked += 1
        return super().reference()


def step(
    objective: Any, capacity: int, policy: TablePolicy | None = None, indices: Sequence[int] = range(len(TREES))
) -> tuple[float, Tensor]:
    """The loss of a step, and the parameters after it."""
    policy = policy or TablePolicy(dtype=torch.float64)
    factory = partial(AdamW().build, learning_rate=1e-2)
    trainer = Trainer(policy, objective, optimizer=factory, learning_rate=lambda _: 1e-2, seed=0)
    work = feed_of(objective, ListCorpus(TREES), capacity).step(indices)
    loss = float(trainer.step(work).means["loss"])
    return loss, policy.module.logits_VV.detach()


@pytest.mark.parametrize("surveys", ["own", "mismatched"])
def test_the_mean_is_that_of_the_step(surveys: Literal["own", "mismatched"]) -> None:
    whole, pieces = Listening(surveys), Listening(surveys)
    loss, parameters = step(whole, 1000)
    other_loss, other_parameters = step(pieces, 30)
    trees: Any = TREES if surveys == "own" else Mismatched(ListCorpus(TREES), 30)  # type: ignore[arg-type]
    batch = lay_out([trees[i] for i in range(len(TREES))])
    expected = float(TablePolicy(dtype=torch.float64).score(batch).sum().detach()) / len(TREES)
    assert whole.heard == pytest.approx(pieces.heard, rel=1e-12)
    assert whole.heard[0] == pytest.approx(expected, rel=1e-12)
    assert loss == pytest.approx(other_loss, rel=1e-12)
    torch.testing.assert_close(parameters, other_parameters, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("surveys", ["own", "mismatched"])
def test_held_out_data_has_one_mean(surveys: Literal["own", "mismatched"]) -> None:
    """However it is grouped, which depends on what a device takes at once."""
    objective = Listening(surveys)
    trainer = Trainer(TablePolicy(dtype=torch.float64), objective, optimizer=torch.optim.SGD, learning_rate=lambda _: 0.1, seed=0)
    feed = feed_of(objective, ListCorpus(TREES), 30)
    losses = [trainer.evaluate(works)["loss"] for works in ([feed.step(range(7))], Held(feed))]
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    assert objective.heard[0] == pytest.approx(objective.heard[1], rel=1e-12)
    assert len(objective.heard) == 2


@pytest.mark.parametrize("surveys", ["own", "mismatched"])
def test_dropout_has_no_part_in_the_mean(surveys: Literal["own", "mismatched"]) -> None:
    """Its draws depend on how the step is cut; the loss, of which one learns, has it all the same."""
    dropping, plain = Listening(surveys), Listening(surveys)
    losses = [step(dropping, capacity, TablePolicy(dtype=torch.float64, dropout=0.5))[0] for capacity in (1000, 30)]
    loss, _ = step(plain, 1000)
    assert dropping.heard == pytest.approx([plain.heard[0]] * 2, rel=1e-12)
    assert loss not in losses


def test_tokens_are_counted_where_they_are_measured() -> None:
    objective = OfTokens("mismatched")
    step(objective, 30, indices=range(3))
    mismatched: Any = Mismatched(ListCorpus(TREES), 30)  # type: ignore[arg-type]
    logp_M = TablePolicy(dtype=torch.float64).score(lay_out([mismatched[i] for i in range(3)])).detach()
    assert objective.heard == [pytest.approx(float(logp_M.mean()), rel=1e-12)]


def test_a_live_reference_is_asked_once_of_each_batch() -> None:
    policy = Counting(dtype=torch.float64)
    works = feed_of(Bco(), ListCorpus(TREES), 30).step(range(len(TREES))).works
    step(Bco(), 30, policy)
    assert policy.asked == len(works) > 1


def test_without_a_survey_it_is_called_plainly() -> None:
    with pytest.raises(AssertionError, match="given no mean"):
        step(Listening(None), 1000)


def test_prompts_with_the_completions_of_others() -> None:
    mismatched = Mismatched(ListCorpus(TREES), 14)  # type: ignore[arg-type]
    for index in range(len(TREES)):
        own, other, tree = TREES[index], TREES[(index + 3) % 7], mismatched[index]
        room = 14 - len(own.prompt)
        assert np.array_equal(tree.prompt, own.prompt)
        for made, given, flags in zip(tree.completions, other.completions, tree.trained, strict=True):
            assert np.array_equal(made, given[:room])
            assert len(flags) == len(made)
    for shared in (True, False):
        lengths = [len(lay_out([mismatched[index]], share_prompts=shared).tokens_T) for index in range(len(TREES))]
        assert mismatched.row_lengths(share_prompts=shared).tolist() == lengths
    assert any(len(completion) > 14 - len(own.prompt) for own in TREES for tree in TREES for completion in tree.completions)


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 0, 1, 2, 3], [0, 0, 0, 1, 0, 0], [2, 1, 0, 0, 0, 0, 0], [0, 1]])
def test_no_prompt_gets_completions_of_its_own(order: list[int]) -> None:
    """Good replies followed by bad ones to the same prompts, say, of which each has its like half the data away."""
    prompts = [np.array([3, 4 + number], np.int32) for number in range(4)]
    trees = [replace(tree, prompt=prompts[number]) for number, tree in zip(order, random_trees(len(order), completions=1), strict=True)]
    mismatched = Mismatched(ListCorpus(trees), 30)  # type: ignore[arg-type]
    for place, number in enumerate(order):
        after = [(place + len(order) // 2 + step) % len(order) for step in range(len(order))]
        expected = next(other for other in after if order[other] != number)
        assert np.array_equal(mismatched[place].prompt, prompts[number])
        assert np.array_equal(mismatched[place].completions[0], trees[expected].completions[0])


@pytest.mark.parametrize("count", [1, 5])
def test_one_prompt_has_no_others(count: int) -> None:
    trees = [replace(tree, prompt=TREES[0].prompt) for tree in random_trees(count, completions=1)]
    with pytest.raises(OnePromptError, match=rf"stages.kto.data: its {count} examples have one and the same prompt"):
        Mismatched(ListCorpus(trees), 30, "stages.kto.data")  # type: ignore[arg-type]


class MeasuresMeans(Listening):
    """Of the batch that it sees."""

    def measure(self, policy: Scores, reference: Scores | None) -> Tensor:
        return policy.sums().mean()


class LearnsMeans(Listening):
    """A loss that is a mean, once there is one to compare with."""

    def _loss(self, mean: Tensor, policy: Scores, reference: Scores | None) -> Outcome:
        return Outcome((policy.sums() - mean).square().mean())


def test_the_laws_tell_what_does_not_add_up() -> None:
    laws = ObjectiveLaws()
    for laws.objective in (Listening("own"), LearnsMeans("own"), LearnsMeans(None)):
        laws.test_its_measure_adds_up_over_examples()
    for laws.objective in (Listening("own"), MeasuresMeans("own"), LearnsMeans(None)):
        laws.test_keeps_its_laws_against_a_mean()
    laws.objective = MeasuresMeans("own")
    with pytest.raises(AssertionError, match="not close"):
        laws.test_its_measure_adds_up_over_examples()
    laws.objective = LearnsMeans("own")
    with pytest.raises(AssertionError, match="not close"):
        laws.test_keeps_its_laws_against_a_mean()
