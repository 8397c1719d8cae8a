"""Dynamic fine-tuning: cross-entropy that trusts the unlikely tokens less."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from zephyr_kit import Unit
from zephyr_kit.protocols import Outcome, Scores


@dataclass(frozen=True)
class Dft:
    """-p log p per token, p without a gradient (arXiv 2508.05629)."""

    completions: ClassVar[int] = 1
    unit: ClassVar[Unit] = Unit.TOKEN
    needs_reference: ClassVar[bool] = False

    def __call__(self, policy: Scores, reference: Scores | None) -> Outcome:
        logp_M = policy.logp_M
        return Outcome(-(logp_M.detach().exp() * logp_M).sum(), {"nll": -logp_M.detach().sum()})
