"""Weighted preference optimisation: what the policy itself would say counts for more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Gt
from torch.nn.functional import logsigmoid

from zephyr_kit import Unit
from zephyr_kit.protocols import Outcome, Scores
from zkit_preference.pairs import log_ratios, pair_metrics


@dataclass(frozen=True)
class Wpo:
    """-w_w w_l log sigmoid(beta h), h = log pi_w/ref_w - log pi_l/ref_l, w = exp(log pi / |y|), held fast (arXiv 2406.11827, eq. 2).

    The paper's weights before their alignment, which divides by the sum of the squared probabilities
    of the whole vocabulary: a head that never holds these cannot give it.
    """

    beta: Annotated[float, Gt(0)] = 0.1
    """How dearly the policy pays for leaving the reference."""

    completions: ClassVar[int] = 2
    unit: ClassVar[Unit] = Unit.EXAMPLE
    needs_reference: ClassVar[bool] = True

    def __call__(self, policy: Scores, reference: Scores | None) -> Outcome:
        chosen, rejected = log_ratios(policy, reference)
        weight_N = policy.means().detach().exp()
        losses = -logsigmoid(self.beta * (chosen - rejected)) * weight_N[0::2] * weight_N[1::2]
        return Outcome(losses.sum(), pair_metrics(policy, chosen, rejected, self.beta))
