"""Identity preference optimisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Gt

from zephyr_kit import Unit
from zephyr_kit.protocols import Outcome, Scores
from zkit_preference.pairs import log_ratios, pair_metrics


@dataclass(frozen=True)
class Ipo:
    """(h - 1 / (2 tau))^2, h = log pi_w/ref_w - log pi_l/ref_l (arXiv 2310.12036, eq. 17)."""

    tau: Annotated[float, Gt(0)] = 0.1
    """Regularisation; the margin aimed at is 1 / (2 tau). trl calls it beta."""
    per_token: bool = True
    """Average each log ratio over its completion's tokens, as the authors advise; the paper's code sums."""

    completions: ClassVar[int] = 2
    unit: ClassVar[Unit] = Unit.EXAMPLE
    needs_reference: ClassVar[bool] = True

    def __call__(self, policy: Scores, reference: Scores | None) -> Outcome:
        chosen, rejected = log_ratios(policy, reference, per_token=self.per_token)
        losses = (chosen - rejected - 1 / (2 * self.tau)).square()
        return Outcome(losses.sum(), pair_metrics(policy, chosen, rejected, self.tau))
