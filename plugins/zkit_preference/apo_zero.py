"""Anchored preference optimisation, for chosen replies that are better than the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt
from torch import Tensor

from zkit_preference.pairs import PairObjective


@dataclass(frozen=True)
class ApoZero(PairObjective):
    """1 - sigmoid(r_w) + sigmoid(r_l), r = beta log pi/ref: the chosen up, the rejected down (arXiv 2408.06266, eq. 7)."""

    beta: Annotated[float, Gt(0)] = 0.1
    """How dearly the policy pays for leaving the reference."""

    def losses(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        return (-self.beta * chosen).sigmoid() + (self.beta * rejected).sigmoid()
