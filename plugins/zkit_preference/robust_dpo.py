"""DPO that is unbiased when some labels are known to be wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt, Interval
from torch import Tensor
from torch.nn.functional import logsigmoid

from zkit_preference.pairs import PairObjective


@dataclass(frozen=True)
class RobustDpo(PairObjective):
    """((e - 1) log sigmoid(beta h) + e log sigmoid(-beta h)) / (1 - 2e), h = log pi_w/ref_w - log pi_l/ref_l (arXiv 2403.00409)."""

    beta: Annotated[float, Gt(0)] = 0.1
    """How dearly the policy pays for leaving the reference."""
    noise: Annotated[float, Interval(ge=0, lt=0.5)] = 0.1
    """The share of pairs whose labels are the wrong way round; trl calls it label_smoothing."""

    def losses(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        logits = self.beta * (chosen - rejected)
        as_told, flipped = -logsigmoid(logits), -logsigmoid(-logits)
        return ((1 - self.noise) * as_told - self.noise * flipped) / (1 - 2 * self.noise)
