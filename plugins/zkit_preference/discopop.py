"""The loss that a language model discovered: logistic and exponential, mixed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt, Interval
from torch import Tensor
from torch.nn.functional import logsigmoid

from zkit_preference.pairs import PairObjective


@dataclass(frozen=True)
class Discopop(PairObjective):
    """-(1 - s) log sigmoid(l) + s exp(-l), l = beta (log pi_w/ref_w - log pi_l/ref_l), s = sigmoid(l / tau) (arXiv 2406.08414, eq. 5)."""

    beta: Annotated[float, Gt(0)] = 0.05
    """How dearly the policy pays for leaving the reference."""
    tau: Annotated[float, Interval(gt=0, lt=1)] = 0.05
    """How softly one part passes into the other."""

    def losses(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        logits = self.beta * (chosen - rejected)
        logistic = -logsigmoid(logits) * (-logits / self.tau).sigmoid()
        # As one exponential: apart, one factor overflows where the other vanishes.
        return logistic + (logsigmoid(logits / self.tau) - logits).exp()
