"""Contrastive preference optimisation: DPO against a uniform reference, held by the chosen replies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge, Gt
from torch.nn.functional import logsigmoid

from zephyr_kit import Unit
from zephyr_kit.protocols import Outcome, Scores
from zkit_preference.pairs import log_ratios, pair_metrics


@dataclass(frozen=True)
class Cpo:
    """-log sigmoid(beta (log pi_w - log pi_l)) - alpha log pi_w / |y_w| (arXiv 2401.08417; by token as in its code)."""

    beta: Annotated[float, Gt(0)] = 0.1
    """The scale of the rewards."""
    alpha: Annotated[float, Ge(0)] = 1.0
    """How much the log-likelihood of the chosen completion counts, averaged over its tokens."""

    completions: ClassVar[int] = 2
    unit: ClassVar[Unit] = Unit.EXAMPLE
    needs_reference: ClassVar[bool] = False

    def __call__(self, policy: Scores, reference: Scores | None) -> Outcome:
        chosen, rejected = log_ratios(policy, None)
        losses = -logsigmoid(self.beta * (chosen - rejected)) - self.alpha * policy.means()[0::2]
        return Outcome(losses.sum(), pair_metrics(policy, chosen, rejected, self.beta))
