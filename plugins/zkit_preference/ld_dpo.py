"""Length-desensitised DPO: what only the longer completion has counts for less."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from annotated_types import Gt, Interval
from torch import Tensor
from torch.nn.functional import logsigmoid

from zephyr_kit import Unit
from zephyr_kit.protocols import Outcome, Scores
from zkit_preference.pairs import log_ratios, pair_metrics


@dataclass(frozen=True)
class LdDpo:
    """DPO whose log-probabilities count tokens beyond the pair's common length `alpha` times (arXiv 2409.06411)."""

    beta: Annotated[float, Gt(0)] = 0.1
    """How dearly the policy pays for leaving the reference."""
    alpha: Annotated[float, Interval(ge=0, le=1)] = 0.5
    """What tokens beyond the common length count: 1 is DPO, 0 leaves them out."""

    completions: ClassVar[int] = 2
    unit: ClassVar[Unit] = Unit.EXAMPLE
    needs_reference: ClassVar[bool] = True

    def __call__(self, policy: Scores, reference: Scores | None) -> Outcome:
        assert reference is not None
        weight_M = self._weights(policy)
        chosen, rejected = log_ratios(_weighted(policy, weight_M), _weighted(reference, weight_M))
        losses = -logsigmoid(self.beta * (chosen - rejected))
        return Outcome(losses.sum(), pair_metrics(policy, chosen, rejected, self.beta))

    def _weights(self, scores: Scores) -> Tensor:
        length_N = scores.lengths()
        common_N = torch.minimum(length_N[0::2], length_N[1::2]).repeat_interleave(2)
        is_common_M = scores.places() < common_N[scores.sequence_M]
        return torch.where(is_common_M, torch.ones_like(scores.logp_M), self.alpha)


def _weighted(scores: Scores, weight_M: Tensor) -> Scores:
    return replace(scores, logp_M=scores.logp_M * weight_M)
