"""Simple preference optimisation: average log-probabilities, a margin, no reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge, Gt
from torch.nn.functional import logsigmoid

from zephyr_kit import Unit
from zephyr_kit.protocols import Outcome, Scores
from zkit_preference.pairs import log_ratios, pair_metrics


@dataclass(frozen=True)
class Simpo:
    """-log sigmoid(beta (log pi_w / |y_w| - log pi_l / |y_l|) - gamma) (arXiv 2405.14734, eq. 6)."""

    beta: Annotated[float, Gt(0)] = 2.0
    """The scale of the rewards, which are log-probabilities of a token on average."""
    gamma: Annotated[float, Ge(0)] = 1.0
    """The margin aimed at, in rewards."""

    completions: ClassVar[int] = 2
    unit: ClassVar[Unit] = Unit.EXAMPLE
    needs_reference: ClassVar[bool] = False

    def __call__(self, policy: Scores, reference: Scores | None) -> Outcome:
        chosen, rejected = log_ratios(policy, None, per_token=True)
        losses = -logsigmoid(self.beta * (chosen - rejected) - self.gamma)
        return Outcome(losses.sum(), pair_metrics(policy, chosen, rejected, self.beta))
