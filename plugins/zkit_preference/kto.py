"""Kahneman-Tversky optimisation from replies that are good or bad, each by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from zephyr_kit.protocols import Outcome, Scores
from zkit_preference.prospect import Prospect


@dataclass(frozen=True)
class Kto(Prospect):
    """w_good (1 - sigmoid(beta (r - z0))) or w_bad (1 - sigmoid(beta (z0 - r))), r = log pi/ref (arXiv 2402.01306, eq. 7)."""

    threshold: float = 0.5
    """A completion is good if its score is above it: a `label` is 1 or 0."""

    completions: ClassVar[int] = 1
    needs_ratings: ClassVar[bool] = True

    def outcome(self, policy: Scores, reference: Scores | None, *, z0: Tensor | float) -> Outcome:
        """The rewards of good and of bad completions are summed over these, and divided by all."""
        assert reference is not None
        assert policy.rating_N is not None, "completions without scores: `needs_ratings` was not heeded"
        ratio_N, logp_N = policy.sums() - reference.sums(), policy.sums().detach()
        is_good_N = policy.rating_N > self.threshold
        losses = torch.where(is_good_N, self.good(ratio_N, z0), self.bad(ratio_N, z0))
        reward_N, good_N = self.beta * ratio_N.detach(), is_good_N.to(ratio_N.dtype)
        metrics = {
            "reward/chosen": (reward_N * good_N).sum(),
            "reward/rejected": (reward_N * (1 - good_N)).sum(),
            "reward/margin": (reward_N * (2 * good_N - 1)).sum(),
            "reward/accuracy": (is_good_N == (ratio_N.detach() > z0)).to(ratio_N.dtype).sum(),
            "logp/chosen": (logp_N * good_N).sum(),
            "logp/rejected": (logp_N * (1 - good_N)).sum(),
            "share/chosen": good_N.sum(),
        }
        return Outcome(losses.sum(), metrics)
