"""DPO under other divergences than the reverse Kullback-Leibler."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Gt, Interval
from torch import Tensor
from torch.nn.functional import logsigmoid

from zkit_preference.pairs import PairObjective

LARGEST_EXPONENT = 80.0
"""exp of it is still a float32; from there on a log ratio counts as no larger, and has no gradient."""


@dataclass(frozen=True)
class FDpo(PairObjective):
    """-log sigmoid(beta (f'(u_w) - f'(u_l))), u = pi/ref, for a divergence D_f (arXiv 2309.16240)."""

    divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"] = "js"
    """What keeps the policy near the reference: `reverse_kl` is DPO; `js` is Jensen and Shannon's."""
    beta: Annotated[float, Gt(0)] = 0.1
    """How dearly the policy pays for leaving the reference."""
    alpha: Annotated[float, Interval(gt=0, lt=1)] = 0.5
    """Of the alpha divergence, between the reverse (0) and the forward (1) one; trl's coefficient is 1 - alpha."""

    def losses(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        return -logsigmoid(self.beta * (self._slope(chosen) - self._slope(rejected)))

    def _slope(self, log_u: Tensor) -> Tensor:
        """f'(u), up to a constant, which the difference takes away."""
        if self.divergence == "js":
            return math.log(2) + logsigmoid(log_u)
        if self.divergence == "reverse_kl":
            return log_u
        alpha = 1.0 if self.divergence == "forward_kl" else self.alpha
        return (1 - (-alpha * log_u).clamp(max=LARGEST_EXPONENT).exp()) / alpha
