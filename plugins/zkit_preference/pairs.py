"""What objectives over (chosen, rejected) pairs share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from zephyr_kit import Unit
from zephyr_kit.protocols import Outcome, Scores


class PairObjective(ABC):
    """A loss of how far each completion of a pair has moved from the reference; what differs is `losses`."""

    beta: float

    completions: ClassVar[int] = 2
    unit: ClassVar[Unit] = Unit.EXAMPLE
    needs_reference: ClassVar[bool] = True

    @abstractmethod
    def losses(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """What each pair loses, (pairs,), by log(pi / pi_ref) of its completions, (pairs,) each."""

    def __call__(self, policy: Scores, reference: Scores | None) -> Outcome:
        chosen, rejected = log_ratios(policy, reference)
        return Outcome(self.losses(chosen, rejected).sum(), pair_metrics(policy, chosen, rejected, self.beta))


def log_ratios(policy: Scores, reference: Scores | None, *, per_token: bool = False) -> tuple[Tensor, Tensor]:
    """log(pi / pi_ref) of the chosen and of the rejected completions, (pairs,) each; pi alone without a reference."""
    ratio_N = policy.sums() if reference is None else policy.sums() - reference.sums()
    if per_token:
        ratio_N = ratio_N / policy.lengths()
    return ratio_N[0::2], ratio_N[1::2]


def pair_metrics(policy: Scores, chosen: Tensor, rejected: Tensor, beta: float) -> Mapping[str, Tensor]:
    """Sums over pairs of the implicit rewards beta log(pi / pi_ref), and of the log-probabilities."""
    chosen, rejected, logp_N = chosen.detach(), rejected.detach(), policy.sums().detach()
    return {
        "reward/chosen": beta * chosen.sum(),
        "reward/rejected": beta * rejected.sum(),
        "reward/margin": beta * (chosen - rejected).sum(),
        "reward/accuracy": (chosen > rejected).to(chosen.dtype).sum(),
        "logp/chosen": logp_N[0::2].sum(),
        "logp/rejected": logp_N[1::2].sum(),
    }
