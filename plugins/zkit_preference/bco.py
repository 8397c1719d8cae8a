"""Binary classifier optimisation: the reward tells good from bad, from a point between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar, Literal

from annotated_types import Gt
from torch import Tensor
from torch.nn.functional import logsigmoid

from zephyr_kit import Unit
from zephyr_kit.protocols import Outcome, Scores
from zkit_preference.pairs import log_ratios, pair_metrics


@dataclass(frozen=True)
class Bco:
    """-log sigmoid(r_w - d) - log sigmoid(d - r_l), r = beta log pi/ref, d the mean of all r (arXiv 2404.04656).

    The paper has d follow the mean over micro-batches slowly; here it is that over the step, on all devices.
    """

    beta: Annotated[float, Gt(0)] = 0.1
    """How dearly the policy pays for leaving the reference."""
    reward_shift: Literal["step", "none"] = "step"
    """Where d comes from: the mean over the step (which takes another pass without gradients); or d = 0, as in trl's bco_pair."""

    completions: ClassVar[int] = 2
    unit: ClassVar[Unit] = Unit.EXAMPLE
    needs_reference: ClassVar[bool] = True

    @property
    def surveys(self) -> Literal["own", "mismatched"] | None:
        return "own" if self.reward_shift == "step" else None

    def measure(self, policy: Scores, reference: Scores | None) -> Tensor:
        """The rewards, in the middle between chosen and rejected, summed over the pairs."""
        chosen, rejected = log_ratios(policy, reference)
        return self.beta * (chosen + rejected).sum() / 2

    def given(self, mean: Tensor) -> Callable[[Scores, Scores | None], Outcome]:
        """With d from the mean."""
        return partial(self._outcome, shift=mean)

    def __call__(self, policy: Scores, reference: Scores | None) -> Outcome:
        return self._outcome(policy, reference, shift=0.0)

    def _outcome(self, policy: Scores, reference: Scores | None, *, shift: Tensor | float) -> Outcome:
        chosen, rejected = log_ratios(policy, reference)
        losses = -logsigmoid(self.beta * chosen - shift) - logsigmoid(shift - self.beta * rejected)
        return Outcome(losses.sum(), pair_metrics(policy, chosen, rejected, self.beta))
