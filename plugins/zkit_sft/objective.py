"""Cross-entropy of the completion tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from zephyr_kit import Unit
from zephyr_kit.protocols import Outcome, Scores


@dataclass(frozen=True)
class Sft:
    """Minus log-probability of the completions, per token: dSFT of Zephyr (arXiv 2310.16944, section 3)."""

    completions: ClassVar[int] = 1
    unit: ClassVar[Unit] = Unit.TOKEN
    needs_reference: ClassVar[bool] = False

    def __call__(self, policy: Scores, reference: Scores | None) -> Outcome:
        return Outcome(-policy.logp_M.sum())
