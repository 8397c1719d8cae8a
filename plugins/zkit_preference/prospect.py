"""What the forms of Kahneman-Tversky optimisation share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt
from torch import Tensor

from zephyr_kit import Unit
from zephyr_kit.protocols import Outcome, Scores


@dataclass(frozen=True)
class Prospect(ABC):
    """w_good sigmoid(beta (z0 - r)) of a good completion and w_bad sigmoid(beta (r - z0)) of a bad one, r = log pi/ref.

    The paper estimates z0 from a micro-batch; here it is the mean over the step, on all devices.
    """

    beta: Annotated[float, Gt(0)] = 0.1
    """How soon the loss of a completion levels off; risk aversion."""
    desirable_weight: Annotated[float, Ge(0)] = 1.0
    """How much good completions count: the paper has its product with their number be 1 to 4/3 of that of the bad ones."""
    undesirable_weight: Annotated[float, Ge(0)] = 1.0
    reference_point: Literal["step", "zero"] = "step"
    """What a completion is good or bad in comparison with: how far the policy has moved on completions of other
    prompts, in the mean over the step (which takes another pass without gradients); or not at all."""

    completions: ClassVar[int]
    unit: ClassVar[Unit] = Unit.EXAMPLE
    needs_reference: ClassVar[bool] = True

    @property
    def surveys(self) -> Literal["own", "mismatched"] | None:
        return "mismatched" if self.reference_point == "step" else None

    def measure(self, policy: Scores, reference: Scores | None) -> Tensor:
        """log(pi / pi_ref) of a completion, summed over the examples."""
        assert reference is not None
        return (policy.sums() - reference.sums()).sum() / self.completions

    def given(self, mean: Tensor) -> Callable[[Scores, Scores | None], Outcome]:
        """With z0 from the mean: an estimate of a divergence, which is never below zero."""
        return partial(self.outcome, z0=mean.clamp(min=0))

    def __call__(self, policy: Scores, reference: Scores | None) -> Outcome:
        return self.outcome(policy, reference, z0=0.0)

    @abstractmethod
    def outcome(self, policy: Scores, reference: Scores | None, *, z0: Tensor | float) -> Outcome:
        """Loss and metrics against a reference point."""

    def good(self, ratio: Tensor, z0: Tensor | float) -> Tensor:
        """What good completions lose."""
        return self.desirable_weight * (self.beta * (z0 - ratio)).sigmoid()

    def bad(self, ratio: Tensor, z0: Tensor | float) -> Tensor:
        """What bad completions lose."""
        return self.undesirable_weight * (self.beta * (ratio - z0)).sigmoid()
