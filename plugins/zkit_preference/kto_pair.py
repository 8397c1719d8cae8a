"""Kahneman-Tversky optimisation from pairs: the chosen good, the rejected bad."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from zephyr_kit.protocols import Outcome, Scores
from zkit_preference.pairs import log_ratios, pair_metrics
from zkit_preference.prospect import Prospect


@dataclass(frozen=True)
class KtoPair(Prospect):
    """Half of w_good (1 - sigmoid(beta (r_w - z0))) + w_bad (1 - sigmoid(beta (z0 - r_l))), r = log pi/ref (arXiv 2402.01306, eq. 7)."""

    completions: ClassVar[int] = 2

    def outcome(self, policy: Scores, reference: Scores | None, *, z0: Tensor | float) -> Outcome:
        chosen, rejected = log_ratios(policy, reference)
        losses = (self.good(chosen, z0) + self.bad(rejected, z0)) / 2
        return Outcome(losses.sum(), pair_metrics(policy, chosen, rejected, self.beta))
