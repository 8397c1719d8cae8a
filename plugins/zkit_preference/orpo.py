"""Odds ratio preference optimisation: fine-tuning and preference in one, without a reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Gt
from torch import Tensor
from torch.nn.functional import logsigmoid

from zephyr_kit import Unit
from zephyr_kit.protocols import Outcome, Scores
from zkit_preference.pairs import log_ratios, pair_metrics


@dataclass(frozen=True)
class Orpo:
    """-log p_w - beta log sigmoid(log odds p_w - log odds p_l), log p = log pi / |y|, odds p = p / (1 - p) (arXiv 2403.07691, eq. 6, 7)."""

    beta: Annotated[float, Gt(0)] = 0.1
    """How much the odds ratio counts beside the likelihood of the chosen completion; the paper's lambda."""

    completions: ClassVar[int] = 2
    unit: ClassVar[Unit] = Unit.EXAMPLE
    needs_reference: ClassVar[bool] = False

    def __call__(self, policy: Scores, reference: Scores | None) -> Outcome:
        chosen, rejected = log_ratios(policy, None, per_token=True)
        losses = -chosen - self.beta * logsigmoid(_log_odds(chosen) - _log_odds(rejected))
        return Outcome(losses.sum(), pair_metrics(policy, chosen, rejected, self.beta))


def _log_odds(logp: Tensor) -> Tensor:
    """log(p / (1 - p)); a p that rounds to 1 is held a little below it."""
    logp = logp.clamp(max=-torch.finfo(logp.dtype).eps)
    return logp - (-torch.expm1(logp)).log()
