"""Direct preference optimisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Gt, Interval
from torch.nn.functional import logsigmoid

from zephyr_kit import Unit
from zephyr_kit.protocols import Outcome, Scores
from zkit_preference.pairs import log_ratios, pair_metrics


@dataclass(frozen=True)
class Dpo:
    """-log sigmoid(beta h), h = log pi_w/ref_w - log pi_l/ref_l (arXiv 2305.18290, eq. 7; Zephyr's eq. 1)."""

    beta: Annotated[float, Gt(0)] = 0.1
    """How dearly the policy pays for leaving the reference."""
    label_smoothing: Annotated[float, Interval(ge=0, lt=0.5)] = 0.0
    """The assumed share of wrong labels: cDPO."""
    reference_free: bool = False
    """Compare with a uniform reference instead of the model that the stage started from."""

    completions: ClassVar[int] = 2
    unit: ClassVar[Unit] = Unit.EXAMPLE

    @property
    def needs_reference(self) -> bool:
        return not self.reference_free

    def __call__(self, policy: Scores, reference: Scores | None) -> Outcome:
        chosen, rejected = log_ratios(policy, reference)
        logits = self.beta * (chosen - rejected)
        losses = -(1 - self.label_smoothing) * logsigmoid(logits) - self.label_smoothing * logsigmoid(-logits)
        return Outcome(losses.sum(), pair_metrics(policy, chosen, rejected, self.beta))
