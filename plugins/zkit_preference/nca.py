"""Noise contrastive alignment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt
from torch import Tensor
from torch.nn.functional import logsigmoid

from zkit_preference.pairs import PairObjective


@dataclass(frozen=True)
class Nca(PairObjective):
    """-log sigmoid(r_w) - (log sigmoid(-r_w) + log sigmoid(-r_l)) / 2, r = beta log pi/ref (arXiv 2402.05369, for two)."""

    beta: Annotated[float, Gt(0)] = 0.1
    """How dearly the policy pays for leaving the reference."""

    def losses(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        chosen, rejected = self.beta * chosen, self.beta * rejected
        return -logsigmoid(chosen) - (logsigmoid(-chosen) + logsigmoid(-rejected)) / 2
