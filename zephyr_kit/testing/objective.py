"""Laws of objectives."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from hypothesis.strategies import SearchStrategy

from zephyr_kit import Unit
from zephyr_kit.batch import Tree, idle
from zephyr_kit.offset import Offset
from zephyr_kit.protocols import Objective, Outcome, Scores, broken_laws, needs_ratings, survey_of
from zephyr_kit.testing.laws import DoesNotApply
from zephyr_kit.testing.offer import OfferLaws
from zephyr_kit.testing.stand_ins import TablePolicy
from zephyr_kit.testing.strategies import RATINGS, Scored, for_all, in_general_position, scored, trees
from zephyr_kit.trees import Trees
from zephyr_kit.ways import Way, take

ACROSS = (
    "it compares across examples, or averages over those it is given, and a batch holds whichever examples fit: its result then depends on "
    "the size of batches, on packing and on the number of devices. Return a sum over examples, each judged by itself; or say so in `breaks`"
)


USUAL = -4.0
COMPARED = (USUAL, 100 * USUAL)
"""How low log-probabilities go: margins within a bend of the loss, and beyond it, also with a beta of 0.01."""
HIGHEST = -0.01
"""How high they go: what is certain is extreme."""
EXTREME = (-1e-6, -1e4)
MEANS = (-1.5, 0.0, 0.7)
OFFSETS = (0.5, 50.0)
"""How far from the reference steps start, to the same end."""
WAYS: Mapping[str, Way] = {
    "batches of half a step": Way(0.5),
    "each example alone": Way(0.0),
    "rows in the opposite order": Way(reverse=True),
    "prompts repeated": Way(share_prompts=False),
    "the reference scored beforehand, each example alone": Way(0.0, cached=True),
}


class ObjectiveLaws(OfferLaws):
    """What the engine relies on when it packs, accumulates, and spreads examples over ranks."""

    subject = "objective"
    title = "Objectives"
    gate = "is_a_scalar_sum"
    objective: Objective
    cases: ClassVar[int] = 20
    """Draws on which each law is tried."""
    step_cases: ClassVar[int] = 2
    """Draws on which steps are taken, each in every way."""
    ratings: ClassVar[Sequence[float]] = RATINGS
    """What the lowest completion of an example may be rated, for those that read ratings."""

    def test_declares_what_it_compares(self) -> None:
        """It says how many completions an example has, what its loss is a sum over, and whether it needs the reference.

        Without it, the engine cannot lay out examples, nor know what to divide by.
        """
        assert self.objective.completions >= 1
        assert isinstance(self.objective.unit, Unit)
        assert isinstance(self.objective.needs_reference, bool)

    def test_is_a_scalar_sum(self) -> None:
        """The loss is one finite number with a graph.

        Without it, there is nothing to go back through.
        """

        def holds(drawn: Scored) -> None:
            loss = self._call(*drawn.scores()).loss
            assert loss.ndim == 0, f"the loss has the shape {tuple(loss.shape)}: sum it up"
            assert loss.isfinite(), f"the loss of ordinary log-probabilities is {loss.item()}"
            assert loss.requires_grad, "the loss has lost its graph"

        for_all(self._drawn(), holds, cases=self.cases)

    def test_is_the_same_each_time(self) -> None:
        """The same scores give the same loss: nothing is hidden in it. It leaves them, and torch's random numbers, as they are.

        Without it, a resumed run is another one, and cached reference scores are not what the model said.
        """

        def holds(drawn: Scored) -> None:
            policy, reference = drawn.scores()
            with torch.random.fork_rng(devices=[]):
                before = torch.manual_seed(self.cases).get_state()
                one, other = (self._call(policy, reference).loss.item() for _ in range(2))
                assert one == other, f"the loss of the same scores is {one}, and then {other}"
                assert torch.equal(before, torch.get_rng_state()), "it draws or sets torch's random numbers"
            same = zip((policy, reference), drawn.scores(), strict=True)
            assert all(torch.equal(mine.logp_M, its.logp_M) for mine, its in same), "it writes into the scores that it is given"

        for_all(self._drawn(), holds, cases=self.cases)

    def test_adds_up_over_examples(self) -> None:
        """The loss of A and B is that of A plus that of B, and so is every metric.

        Without it, the result depends on micro-batches, packing and the number of devices, which the engine chooses freely.
        """

        def holds(drawn: Scored) -> None:
            policy, reference = drawn.scores()
            whole = self._call(policy, reference)
            parts = [self._call(*alone) for alone in zip(self._each(policy), self._each(reference), strict=True)]
            self.same(whole.loss, torch.stack([part.loss for part in parts]).sum(), told=ACROSS)
            for name, value in whole.metrics.items():
                parted = torch.stack([part.metrics[name] for part in parts]).sum()
                self.same(value, parted, told=f"metric {name} is no sum: the report divides it by the number of units")

        for_all(self._drawn(least=2), holds, cases=self.cases)

    def test_does_not_look_at_the_order_of_examples(self) -> None:
        """Examples of a batch may change places.

        Without it, packing, which lays the longest first, changes the loss.
        """

        def holds(drawn: Scored) -> None:
            policy, reference = drawn.scores()
            moved = (self._join(self._each(scores)[::-1]) for scores in (policy, reference))
            self.same(self._call(policy, reference).loss, self._call(*moved).loss, told=ACROSS)

        for_all(self._drawn(least=2), holds, cases=self.cases)

    def test_a_step_is_the_same_however_it_is_cut(self) -> None:
        """The engine takes the same steps with it in few batches or many, in any order, prompts shared or not, reference cached or not.

        Without it, two machines train two models from one preset.
        """
        if given_up := {"adds_up_over_examples", "does_not_look_at_the_order_of_examples"} & set(broken_laws(self.objective)):
            raise DoesNotApply(f"it breaks the law `{min(given_up)}`, on which this rests")
        ways = {words: way for words, way in WAYS.items() if self.objective.needs_reference or not way.cached}

        def holds(drawn: list[Tree]) -> None:
            for offset in OFFSETS:
                taken = functools.partial(self._taken, Trees(drawn), Offset(offset))
                plainly = taken(Way())
                for words, way in ways.items():
                    self.same(plainly, taken(way), told=f"another loss or gradient with {words}")

        examples = trees(self.objective.completions, count=(6, 6), shortest=2, vocabulary=16)
        for_all(examples, holds, cases=self.step_cases, shrink=False)

    def test_gradient_is_finite_and_not_zero(self) -> None:
        """Where a stage begins, there is something to learn from every example.

        Without it, a step is skipped for its numbers, or rows are paid for that teach nothing.
        """

        def holds(drawn: Scored) -> None:
            policy, reference = drawn.scores()
            self._call(policy, reference).loss.backward()  # type: ignore[no-untyped-call]
            gradient = policy.logp_M.grad
            assert gradient is not None
            assert gradient.isfinite().all(), f"the gradient of {policy.logp_M.tolist()} is {gradient.tolist()}"
            count = policy.num_sequences // self.objective.completions
            idle = [i for i in range(count) if not gradient[policy.sequence_M // self.objective.completions == i].any()]
            assert not idle, f"examples {idle} of {count} have no gradient; if that is meant, try settings with which they have"

        general = in_general_position(self.objective.completions, USUAL, ratings=self.ratings)
        for_all(general.map(self._as_rated), holds, cases=self.cases)

    def test_metrics_hold_no_graph(self) -> None:
        """A metric is a number, detached.

        Without it, the memory of the whole step is held until the metric is read.
        """

        def holds(drawn: Scored) -> None:
            for name, value in self._call(*drawn.scores()).metrics.items():
                assert not value.requires_grad, f"metric {name} holds the graph: .detach()"
                assert value.ndim == 0, f"metric {name} has the shape {tuple(value.shape)}: sum it up"

        for_all(self._drawn(), holds, cases=self.cases)

    def test_survives_extreme_scores(self) -> None:
        """Tokens that are certain, and long completions with sums in the thousands: the loss and its gradient stay finite.

        Without it, steps are skipped, or the run stops: prefer logsigmoid to log(sigmoid), and do not take the logarithm of 1 - p.
        """

        def holds(drawn: Scored) -> None:
            for dtype in (torch.float64, torch.float32):
                policy, reference = drawn.scores(dtype)
                loss = self._call(policy, reference).loss
                loss.backward()  # type: ignore[no-untyped-call]
                assert loss.isfinite(), f"the loss, in {dtype}, is {loss.item()}"
                assert policy.logp_M.grad is not None
                assert policy.logp_M.grad.isfinite().all(), f"the gradient, in {dtype}, is {policy.logp_M.grad.tolist()}"

        for_all(self._drawn(*EXTREME, highest=0.0), holds, cases=self.cases)

    def test_takes_part_without_examples(self) -> None:
        """Of no examples the loss is 0 and has a graph, and the metrics are the same ones, and 0.

        Without it, a rank that has no examples left fails, and takes the others with it.
        """
        batch, nothing = idle(), torch.zeros(0, dtype=torch.float64, requires_grad=True)
        policy, reference = (Scores(logp_M, batch.sequence_M, 0, batch.rating_N, ()) for logp_M in (nothing, nothing.detach()))
        outcome = self._call(policy, reference)
        outcome.loss.backward()  # type: ignore[no-untyped-call]
        assert not outcome.loss, f"the loss of no examples is {outcome.loss.item()}"
        n = self.objective.completions
        one = Scored([[-1.0]] * n, [[-2.0]] * n, [1.0] * n)
        assert list(outcome.metrics) == list(self._call(*one.scores()).metrics)
        assert not any(outcome.metrics.values()), "a metric of no examples is not 0"

    def test_its_measure_adds_up_over_examples(self) -> None:
        """What is measured of A and B is what is measured of A plus that of B.

        Without it, the mean that an objective compares with depends on how the step is cut.
        """
        survey = survey_of(self.objective)
        if survey is None:
            raise DoesNotApply("it measures nothing over a step")

        def holds(drawn: Scored) -> None:
            learning, reference = drawn.scores()
            policy = dataclasses.replace(learning, logp_M=learning.logp_M.detach())
            pairs = [(policy, reference), *zip(self._each(policy), self._each(reference), strict=True)]
            whole, *parts = (survey.measure(one, other if self.objective.needs_reference else None) for one, other in pairs)
            assert whole.ndim == 0
            self.same(whole, torch.stack(parts).sum())

        for_all(self._drawn(least=2), holds, cases=self.cases)

    def test_keeps_its_laws_against_a_mean(self) -> None:
        """Given the mean over a step, an objective that compares with one is like any other.

        Without it, the laws hold only for what it is called as outside of training.
        """
        if survey_of(self.objective) is None:
            raise DoesNotApply("it compares with no mean over a step")
        for mean in MEANS:
            given: Any = copy.copy(self)
            given.objective, given.cases = _Given(self.objective, mean), math.ceil(self.cases / len(MEANS))
            given.test_adds_up_over_examples()
            given.test_does_not_look_at_the_order_of_examples()
            given.test_gradient_is_finite_and_not_zero()
            given.test_metrics_hold_no_graph()
            given.test_is_a_scalar_sum()
            given.test_survives_extreme_scores()
            given.test_takes_part_without_examples()
            given.test_is_the_same_each_time()

    def _taken(self, examples: Trees, offset: Offset, way: Way) -> torch.Tensor:
        """All losses and gradients of two steps."""
        policy, steps = TablePolicy(dtype=torch.float64), [[0, 1, 2], [3, 4, 5]]
        record = take(policy, self.objective, examples, steps, way, device=torch.device("cpu"), max_length=20, offset=offset)
        assert len(record.gradients) == len(steps), f"a step was skipped, for its loss or gradient is not finite; losses: {record.losses}"
        return torch.cat([*record.gradients, torch.tensor(record.losses)])

    def _drawn(self, *lowest: float, highest: float = HIGHEST, least: int = 1) -> SearchStrategy[Scored]:
        drawn = scored(self.objective.completions, *(lowest or COMPARED), highest=highest, least=least, ratings=self.ratings)
        return drawn.map(self._as_rated)

    def _as_rated(self, drawn: Scored) -> Scored:
        """Data need say nothing of completions where nobody asks for it."""
        return drawn if needs_ratings(self.objective) else drawn.unrated()

    def _each(self, whole: Scores) -> list[Scores]:
        """The scores of each example."""
        return whole.examples(self.objective.completions)

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

    def __getattr__(self, name: str) -> Any:
        return getattr(self.objective, name)

    def __call__(self, policy: Scores, reference: Scores | None) -> Outcome:
        outcome: Outcome = self.objective.given(torch.tensor(self.mean, dtype=torch.float64))(policy, reference)
        return outcome
