"""Self-play preference optimisation with hard labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt
from torch import Tensor

from zkit_preference.pairs import PairObjective


@dataclass(frozen=True)
class Sppo(PairObjective):
    """(log pi_w/ref_w - 1/(2 beta))^2 + (log pi_l/ref_l + 1/(2 beta))^2 (arXiv 2405.00675, eq. 4.7 with P = 1 and 0; its eta is 1/beta)."""

    beta: Annotated[float, Gt(0)] = 0.001
    """Each completion is to move by 1/(2 beta), in log ratios, from the reference."""

    def losses(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        aim = 0.5 / self.beta
        return (chosen - aim).square() + (rejected + aim).square()
