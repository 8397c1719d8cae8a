"""Sequence likelihood calibration with a hinge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt
from torch import Tensor

from zkit_preference.pairs import PairObjective


@dataclass(frozen=True)
class Slic(PairObjective):
    """max(0, 1 - beta h), h = log pi_w/ref_w - log pi_l/ref_l: SLiC's hinge (arXiv 2305.10425) on ratios, as in arXiv 2309.06657."""

    beta: Annotated[float, Gt(0)] = 0.1
    """Its inverse is the margin, in log ratios, beyond which a pair has nothing more to teach."""

    def losses(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        return (1 - self.beta * (chosen - rejected)).relu()
