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
    """Log-probability of each of the M target tokens of a batch, and which of the N completions it belongs to.

    A batch holds whole examples. Completions come in the order of their examples, and targets in
    that of their completions. With pairs, `[0::2]` of anything (N,) are the chosen ones and
    `[1::2]` the rejected ones; with k completions to an example, `.view(-1, k)` is (examples, k).
    A batch may be empty, for a rank that has no examples left: then M and N are 0.
    """

    logp_M: Tensor
    """(M,): at most 0, in float32 or better; with a graph for the policy, without one for the reference."""
    sequence_M: Tensor
    """(M,): the completion of each target, from 0, in whole numbers that never fall."""
    num_sequences: int
    """N: as many as there are examples, times the objective's `completions`."""
    rating_N: Tensor | None = None
    """(N,): what the data says of each completion (`Example.scores`), higher is better, NaN where it says nothing; may be None where
    scores are made by hand."""
    counts: tuple[int, ...] | None = None
    """`lengths()` on the host, N whole numbers, so that nothing need wait for the device; may be None where scores are made by hand."""

    def sums(self) -> Tensor:
        """Log-probability of each completion, (N,)."""
        return self._by_sequence(self.logp_M)

    def means(self) -> Tensor:
        """Average log-probability of a target token of each completion, (N,)."""
        return self.sums() / self.lengths()

    def lengths(self) -> Tensor:
        """Number of target tokens of each completion, (N,): at least 1."""
        return self._by_sequence(self.logp_M.new_ones(self.logp_M.shape))

    def places(self) -> Tensor:
        """Which target of its completion each one is, from 0, (M,)."""
        one_M = self.sequence_M.new_ones(self.sequence_M.shape)
        length_N = self._by_sequence(one_M)
        first_N = length_N.cumsum(0) - length_N
        return one_M.cumsum(0) - 1 - first_N[self.sequence_M]

    def only(self, sequences: Sequence[int]) -> Scores:
        """Those of some completions, by their numbers, in this order."""
        import torch

        counts = self._counts()
        pieces, mine = torch.split(self.logp_M, list(counts)), tuple(counts[n] for n in sequences)
        # Each begins with an empty piece, since nothing cannot be joined.
        logp_M = torch.cat([self.logp_M[:0], *(pieces[n] for n in sequences)])
        sequence_M = torch.cat([self.sequence_M[:0], *(self.sequence_M.new_full((count,), i) for i, count in enumerate(mine))])
        rating_N = None if self.rating_N is None else torch.cat([self.rating_N[:0], *(self.rating_N[n : n + 1] for n in sequences)])
        return Scores(logp_M, sequence_M, len(mine), rating_N, mine)

    def examples(self, size: int) -> list[Scores]:
        """One for each example, of `size` completions."""
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
    """Totals over a batch; the engine adds them up over the step, on all devices, and divides by the number of units in it."""

    loss: Tensor
    """A scalar with a graph: a sum over tokens or over examples, never a mean."""
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    """By name, each a scalar without a graph (`.detach()`), and a sum as the loss is: what is reported is its mean over units. The same
    names in the same order from every batch, an empty one too; none is `loss`."""


class Objective(Protocol):
    """A loss that is a sum over tokens or over examples, and so can be added up in any order.

    It is a frozen dataclass: its fields are the keys of its table in a preset, the text below each explains it, and what
    `__post_init__` refuses with a `ValueError` is an error of the preset. The properties below may be class variables
    (`ClassVar`), or fields where a preset shall set them.

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
        """What the loss is a sum over, and the mean that is minimised a mean of."""
        ...

    @property
    def needs_reference(self) -> bool:
        """Whether it compares with the model that the stage started from."""
        ...

    def __call__(self, policy: Scores, reference: Scores | None) -> Outcome:
        """Loss and metrics of a batch.

        `reference` is None unless `needs_reference`; else it has the same completions and targets as `policy`, in the same
        order, and no graph. Whether it was scored now or before the first step does not show.
        """
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
        """A sum over the units of a batch, a scalar; called without a graph."""
        ...

    def given(self, mean: Tensor) -> Callable[[Scores, Scores | None], Outcome]:
        """What makes loss and metrics of a batch, in a step of which the mean, a scalar, is this one."""
        ...


def survey_of(objective: Objective) -> Surveying | None:
    """The objective, if it wants a survey."""
    return objective if isinstance(objective, Surveying) and objective.surveys else None


def needs_ratings(objective: Objective) -> bool:
    """Whether it reads what the data says of each completion; those that say nothing do not."""
    return bool(getattr(objective, "needs_ratings", False))


def metrics_of(objective: Objective) -> list[str] | None:
    """The names of what it reports beside the loss, as it gives them for a batch that is empty; None where it cannot take one."""
    import torch

    nothing = Scores(torch.zeros(0), torch.zeros(0, dtype=torch.long), 0, torch.zeros(0), ())
    survey = survey_of(objective)
    judge = objective if survey is None else survey.given(torch.zeros(()))
    try:
        return list(judge(nothing, nothing if objective.needs_reference else None).metrics)
    except Exception:  # one that breaks that law is told by the laws
        return None


def num_units(objective: Objective, batch: Batch) -> int:
    """How many tokens, or examples, the loss of this batch is a sum over."""
    if objective.unit is Unit.TOKEN:
        return len(batch.target_M)
    return batch.num_sequences // objective.completions
