"""Laws of objectives."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from zephyr_kit import Unit
from zephyr_kit.protocols import Objective, Outcome, Scores, survey_of
from zephyr_kit.testing.random_data import random_scores, random_trees


class ObjectiveLaws:
    """What the engine relies on when it packs, accumulates, and spreads examples over ranks."""

    objective: Objective

    def test_is_a_frozen_dataclass(self) -> None:
        """A preset's table is its constructor call, and nothing it learns may hide in it."""
        assert dataclasses.is_dataclass(type(self.objective))
        parameters: Any = vars(type(self.objective))["__dataclass_params__"]
        assert parameters.frozen

    def test_declares_what_it_compares(self) -> None:
        """The engine lays out so many completions, and divides by such units."""
        assert self.objective.completions >= 1
        assert isinstance(self.objective.unit, Unit)
        assert isinstance(self.objective.needs_reference, bool)

    def test_adds_up_over_examples(self) -> None:
        """loss(A and B) = loss(A) + loss(B), and likewise every metric: else micro-batches change the result."""
        policy, reference = self._scores(6)
        whole = self._call(policy, reference)
        parts = [self._call(self._only(policy, i), self._only(reference, i)) for i in range(6)]
        torch.testing.assert_close(whole.loss, torch.stack([part.loss for part in parts]).sum())
        for name, value in whole.metrics.items():
            torch.testing.assert_close(value, torch.stack([part.metrics[name] for part in parts]).sum())

    def test_does_not_look_at_the_order_of_examples(self) -> None:
        """Shuffling examples within a batch changes nothing."""
        policy, reference = self._scores(4)
        order = [2, 0, 3, 1]
        moved = self._call(self._join([self._only(policy, i) for i in order]), self._join([self._only(reference, i) for i in order]))
        torch.testing.assert_close(self._call(policy, reference).loss, moved.loss)

    def test_gradient_is_finite_and_not_zero(self) -> None:
        """There is something to learn, from every example."""
        policy, reference = self._scores(4)
        self._call(policy, reference).loss.backward()  # type: ignore[no-untyped-call]
        gradient = policy.logp_M.grad
        assert gradient is not None
        assert gradient.isfinite().all()
        assert all(gradient[policy.sequence_M // self.objective.completions == i].any() for i in range(4))

    def test_metrics_hold_no_graph(self) -> None:
        """A metric that holds the graph holds the memory of the whole step."""
        metrics = self._call(*self._scores(2)).metrics
        assert not any(value.requires_grad for value in metrics.values())
        assert all(value.ndim == 0 for value in metrics.values())

    def test_is_a_scalar_sum(self) -> None:
        """The loss is one number with a graph."""
        loss = self._call(*self._scores(2)).loss
        assert loss.ndim == 0
        assert loss.requires_grad

    def test_survives_extreme_scores(self) -> None:
        """Long completions of an untrained model have sums in the thousands."""
        policy, reference = self._scores(3, scale=1e4)
        loss = self._call(policy, reference).loss
        loss.backward()  # type: ignore[no-untyped-call]
        assert loss.isfinite()
        assert policy.logp_M.grad is not None
        assert policy.logp_M.grad.isfinite().all()

    def test_is_the_same_each_time(self) -> None:
        """Nothing hidden: the same scores give the same loss."""
        policy, reference = self._scores(3)
        assert torch.equal(self._call(policy, reference).loss, self._call(policy, reference).loss)

    def test_its_measure_adds_up_over_examples(self) -> None:
        """What is measured of A and B is what is measured of A plus that of B.

        Without it, the mean that an objective compares with depends on how the step is cut.
        """
        survey, (learning, reference) = survey_of(self.objective), self._scores(6)
        if survey is not None:
            policy = dataclasses.replace(learning, logp_M=learning.logp_M.detach())
            pairs = [(policy, reference), *((self._only(policy, i), self._only(reference, i)) for i in range(6))]
            whole, *parts = (survey.measure(one, other if self.objective.needs_reference else None) for one, other in pairs)
            assert whole.ndim == 0
            torch.testing.assert_close(whole, torch.stack(parts).sum())

    def test_keeps_its_laws_against_a_mean(self) -> None:
        """Given the mean over a step, an objective that compares with one is like any other.

        Without it, the laws hold only for what it is called as outside of training.
        """
        survey = survey_of(self.objective)
        for mean in (-1.5, 0.0, 0.7) if survey is not None else ():
            given = copy.copy(self)
            given.objective = _Given(self.objective, mean)
            given.test_adds_up_over_examples()
            given.test_does_not_look_at_the_order_of_examples()
            given.test_gradient_is_finite_and_not_zero()
            given.test_metrics_hold_no_graph()
            given.test_is_a_scalar_sum()
            given.test_survives_extreme_scores()
            given.test_is_the_same_each_time()

    def _scores(self, count: int, scale: float = 4.0) -> tuple[Scores, Scores]:
        trees = random_trees(count, self.objective.completions)
        return random_scores(trees, seed=0, scale=scale, needs_gradient=True), random_scores(trees, seed=1, scale=scale)

    def _only(self, whole: Scores, example: int) -> Scores:
        n = self.objective.completions
        return whole.only(range(example * n, example * n + n))

    def _join(self, parts: Sequence[Scores]) -> Scores:
        n = self.objective.completions
        numbers = torch.cat([part.sequence_M + i * n for i, part in enumerate(parts)])
        ratings = torch.cat([part.rating_N for part in parts if part.rating_N is not None])
        return Scores(torch.cat([part.logp_M for part in parts]), numbers, n * len(parts), ratings)

    def _call(self, policy: Scores, reference: Scores) -> Outcome:
        return self.objective(policy, reference if self.objective.needs_reference else None)


@dataclasses.dataclass(frozen=True)
class _Given:
    """An objective with the mean over a step."""

    objective: Any
    mean: float

    @property
    def completions(self) -> int:
        return int(self.objective.completions)

    @property
    def unit(self) -> Unit:
        return Unit(self.objective.unit)

    @property
    def needs_reference(self) -> bool:
        return bool(self.objective.needs_reference)

    def __call__(self, policy: Scores, reference: Scores | None) -> Outcome:
        outcome: Outcome = self.objective.given(torch.tensor(self.mean, dtype=torch.float64))(policy, reference)
        return outcome
