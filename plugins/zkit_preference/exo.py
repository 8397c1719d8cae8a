"""Efficient exact optimisation: the reverse divergence from the labels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt, Interval
from torch import Tensor
from torch.nn.functional import logsigmoid

from zkit_preference.pairs import PairObjective


@dataclass(frozen=True)
class Exo(PairObjective):
    """KL(q || p), q = sigmoid(±beta h), p = (1 - e, e), h = log pi_w/ref_w - log pi_l/ref_l (arXiv 2402.00856, eq. 16)."""

    beta: Annotated[float, Gt(0)] = 0.1
    """How dearly the policy pays for leaving the reference."""
    label_smoothing: Annotated[float, Interval(gt=0, lt=0.5)] = 1e-3
    """The probability, e, that the rejected one is the better."""

    def losses(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        logits = self.beta * (chosen - rejected)
        better = logits.sigmoid() * (logsigmoid(logits) - math.log1p(-self.label_smoothing))
        worse = (-logits).sigmoid() * (logsigmoid(-logits) - math.log(self.label_smoothing))
        return better + worse
