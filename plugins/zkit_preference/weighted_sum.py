"""A weighted sum of objectives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor

from zephyr_kit import Unit
from zephyr_kit.protocols import INLINE, Objective, Outcome, Scores, broken_laws, needs_ratings, survey_of


@dataclass(frozen=True)
class Part:
    """An objective, and how much it counts; the other keys of its table are the objective's own."""

    objective: Objective = field(metadata={INLINE: True})
    weight: Annotated[float, Gt(0)] = 1.0

    def share_of(self, scores: Scores, completions: int) -> Scores:
        """What it is given: of the first completions of each example, as many as it takes."""
        own = self.objective.completions
        return scores if own == completions else scores.only([n for n in range(scores.num_sequences) if n % completions < own])

    def outcome(self, policy: Scores, reference: Scores | None) -> Outcome:
        """Its loss and metrics, not yet weighted."""
        return self.objective(policy, reference if self.objective.needs_reference else None)


@dataclass(frozen=True)
class Sum:
    """sum_i w_i L_i, each L_i another objective: with `dpo` and `sft` that of arXiv 2404.19733, for instance.

    A part that takes fewer completions than another gets the first, which are the best: `sft` beside
    `dpo` learns the chosen ones. Examples are counted; a part that counts tokens is averaged over those
    of each example. Only where all parts count tokens does the sum.
    """

    of: tuple[Part, ...]
    """The parts: [{ use = "dpo", beta = 0.1 }, { use = "sft", weight = 0.2 }]."""

    def __post_init__(self) -> None:
        if not self.of:
            raise ValueError("needs at least one table in `of`")
        for part in self.of:
            if survey_of(part.objective) is not None:
                raise ValueError("`of`: an objective that compares with a mean over the step cannot be a part; set that comparison off")

    @property
    def completions(self) -> int:
        return max(part.objective.completions for part in self.of)

    @property
    def unit(self) -> Unit:
        tokens_of_all = all(part.objective.unit is Unit.TOKEN and part.objective.completions == self.completions for part in self.of)
        return Unit.TOKEN if tokens_of_all else Unit.EXAMPLE

    @property
    def needs_reference(self) -> bool:
        return any(part.objective.needs_reference for part in self.of)

    @property
    def needs_ratings(self) -> bool:
        return any(needs_ratings(part.objective) for part in self.of)

    @property
    def breaks(self) -> Mapping[str, str]:
        return {law: reason for part in self.of for law, reason in broken_laws(part.objective).items()}

    def __call__(self, policy: Scores, reference: Scores | None) -> Outcome:
        outcomes = [self._outcome(part, policy, reference) for part in self.of]
        weighted = [part.weight * outcome.loss for part, outcome in zip(self.of, outcomes, strict=True)]
        return Outcome(torch.stack(weighted).sum(), _metrics(outcomes))

    def _outcome(self, part: Part, policy: Scores, reference: Scores | None) -> Outcome:
        own, size = part.share_of(policy, self.completions), part.objective.completions
        theirs = None if reference is None else part.share_of(reference, self.completions)
        if part.objective.unit is self.unit or not own.num_sequences:  # a rank without examples takes part all the same
            return part.outcome(own, theirs)
        examples = own.examples(size)
        others = [None] * len(examples) if theirs is None else theirs.examples(size)
        by_example = [part.outcome(*each) for each in zip(examples, others, strict=True)]
        return _mean_by_token(own, by_example, size)


def _mean_by_token(scores: Scores, outcomes: Sequence[Outcome], size: int) -> Outcome:
    """Outcomes of single examples, each divided by its tokens, and added up."""
    num_tokens = scores.lengths().view(-1, size).sum(-1)

    def mean(values: list[Tensor]) -> Tensor:
        return (torch.stack(values) / num_tokens).sum()

    metrics = {name: mean([outcome.metrics[name] for outcome in outcomes]) for name in outcomes[0].metrics}
    return Outcome(mean([outcome.loss for outcome in outcomes]), metrics)


def _metrics(outcomes: Sequence[Outcome]) -> Mapping[str, Tensor]:
    """The loss of each part, by its place, and what the parts tell; the first to tell of something is heard."""
    told: dict[str, Tensor] = {f"loss/{place}": outcome.loss.detach() for place, outcome in enumerate(outcomes, 1)}
    for outcome in outcomes:
        told = {**outcome.metrics, **told}
    return told
