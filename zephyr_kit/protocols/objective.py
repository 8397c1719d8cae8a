"""What is minimised.

Tensor names carry their shape: M targets, N sequences (completions).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from zephyr_kit import Unit

if TYPE_CHECKING:
    from torch import Tensor

    from zephyr_kit.batch import Batch


@dataclass(frozen=True, slots=True)
class Scores:
    """Log-probability of each of the M target tokens, and the completion it belongs to.

    Completions come in the order of their examples, and targets in that of their completions:
    with pairs, 0::2 are the chosen ones and 1::2 the rejected ones. `rating_N` is what the data
    says of each completion (`Example.scores`), NaN where it says nothing; `counts` repeats
    `lengths()` on the host, so that nothing need wait for the device. Both may be missing where
    scores are made by hand.
    """

    logp_M: Tensor
    sequence_M: Tensor
    num_sequences: int
    rating_N: Tensor | None = None
    counts: tuple[int, ...] | None = None

    def sums(self) -> Tensor:
        """Log-probability of each completion, (N,)."""
        return self._by_sequence(self.logp_M)

    def means(self) -> Tensor:
        """Average log-probability of a target token of each completion, (N,)."""
        return self.sums() / self.lengths()

    def lengths(self) -> Tensor:
        """Number of target tokens of each completion, (N,)."""
        return self._by_sequence(self.logp_M.new_ones(self.logp_M.shape))

    def places(self) -> Tensor:
        """Which target of its completion each one is, from 0, (M,)."""
        one_M = self.sequence_M.new_ones(self.sequence_M.shape)
        length_N = self._by_sequence(one_M)
        first_N = length_N.cumsum(0) - length_N
        return one_M.cumsum(0) - 1 - first_N[self.sequence_M]

    def only(self, sequences: Sequence[int]) -> Scores:
        """Those of some completions, in this order."""
        import torch

        counts = self._counts()
        pieces, mine = torch.split(self.logp_M, list(counts)), tuple(counts[n] for n in sequences)
        # Each begins with an empty piece, since nothing cannot be joined.
        logp_M = torch.cat([self.logp_M[:0], *(pieces[n] for n in sequences)])
        sequence_M = torch.cat([self.sequence_M[:0], *(self.sequence_M.new_full((count,), i) for i, count in enumerate(mine))])
        rating_N = None if self.rating_N is None else torch.cat([self.rating_N[:0], *(self.rating_N[n : n + 1] for n in sequences)])
        return Scores(logp_M, sequence_M, len(mine), rating_N, mine)

    def examples(self, size: int) -> list[Scores]:
        """Those of each example of so many completions."""
        import torch

        counts = self._counts()
        mine = [counts[first : first + size] for first in range(0, len(counts), size)]
        lengths = [sum(each) for each in mine]
        logp, sequences = torch.split(self.logp_M, lengths), torch.split(self.sequence_M, lengths)
        ratings = [None] * len(mine) if self.rating_N is None else torch.split(self.rating_N, size)
        pieces = zip(logp, sequences, ratings, mine, strict=True)
        return [Scores(one, own - n * size, size, rating, each) for n, (one, own, rating, each) in enumerate(pieces)]

    def _counts(self) -> tuple[int, ...]:
        """Number of target tokens of each completion, on the host."""
        return tuple(self._by_sequence(self.sequence_M.new_ones(self.sequence_M.shape)).tolist()) if self.counts is None else self.counts

    def __getattr__(self, name: str) -> Any:
        """Say what there is in place of what there is not."""
        raise AttributeError(
            f"scores have no `{name}`: an objective sees the log-probability of each target token (`logp_M`), and no logits. The head "
            "never holds a (tokens x vocabulary) matrix, and an objective that needs one cannot be packed, cached or certified"
        )

    def _by_sequence(self, value_M: Tensor) -> Tensor:
        return value_M.new_zeros(self.num_sequences).index_add(0, self.sequence_M, value_M)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Totals over a batch; the engine divides them by the number of units in the step.

    `loss` is a scalar with a graph; every metric is a scalar without one.
    """

    loss: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


class Objective(Protocol):
    """A loss that is a sum over tokens or over examples, and so can be added up in any order.

    One that reads what the data says of each completion, `Scores.rating_N`, has `needs_ratings = True`:
    rows without are then bad ones.

    One that cannot keep a law of `zephyr_kit.testing` says so in the open: `breaks: ClassVar[Mapping[str, str]]`, on the class, from
    the law's name to the reason. What rests on that law is then no longer promised for it, and reports and certificates tell.
    """

    @property
    def completions(self) -> int:
        """How many completions each example has."""
        ...

    @property
    def unit(self) -> Unit:
        """What the loss is a sum over."""
        ...

    @property
    def needs_reference(self) -> bool:
        """Whether it compares with the model that the stage started from."""
        ...

    def __call__(self, policy: Scores, reference: Scores | None) -> Outcome:
        """Loss and metrics of a batch; `reference` is None unless `needs_reference`."""
        ...


@runtime_checkable
class Surveying(Protocol):
    """An objective that compares with a mean over all examples of the step, on all devices.

    The engine scores the step once more before it, without gradients, adds up what `measure`
    says, divides it by the number of units, and minimises what `given` makes of the mean: so the
    result is the same however the step is cut, which that of a mean over a micro-batch is not.
    Called without a survey, the objective compares with zero.
    """

    @property
    def surveys(self) -> Literal["own", "mismatched"] | None:
        """What is measured: the examples, or their prompts with the completions of others; None for nothing."""
        ...

    def measure(self, policy: Scores, reference: Scores | None) -> Tensor:
        """A sum over the units of a batch, a scalar."""
        ...

    def given(self, mean: Tensor) -> Callable[[Scores, Scores | None], Outcome]:
        """Loss and metrics in a step of which the mean is this one."""
        ...


def survey_of(objective: Objective) -> Surveying | None:
    """The objective, if it wants a survey."""
    return objective if isinstance(objective, Surveying) and objective.surveys else None


def needs_ratings(objective: Objective) -> bool:
    """Whether it reads what the data says of each completion; those that say nothing do not."""
    return bool(getattr(objective, "needs_ratings", False))


def num_units(objective: Objective, batch: Batch) -> int:
    """How many tokens, or examples, the loss of this batch is a sum over."""
    if objective.unit is Unit.TOKEN:
        return len(batch.target_M)
    return batch.num_sequences // objective.completions
