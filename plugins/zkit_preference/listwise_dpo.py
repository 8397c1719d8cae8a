"""DPO over rankings of several completions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge, Gt
from torch import Tensor

from zephyr_kit import Unit
from zephyr_kit.protocols import Outcome, Scores


@dataclass(frozen=True)
class ListwiseDpo:
    """-sum_k log (exp r_k / sum_{j >= k} exp r_j), r = beta log pi/ref, the best first (arXiv 2305.18290, A.3, of Plackett and Luce)."""

    completions: Annotated[int, Ge(2)] = 4
    """How many completions each example ranks; with two it is DPO."""
    beta: Annotated[float, Gt(0)] = 0.1
    """How dearly the policy pays for leaving the reference."""

    unit: ClassVar[Unit] = Unit.EXAMPLE
    needs_reference: ClassVar[bool] = True

    def __call__(self, policy: Scores, reference: Scores | None) -> Outcome:
        assert reference is not None
        reward_EN = self.beta * (policy.sums() - reference.sums()).view(-1, self.completions)
        # From the last on: which of those that are left is the best?
        left_EN = reward_EN.flip(-1).logcumsumexp(-1).flip(-1)
        return Outcome((left_EN - reward_EN).sum(), self._metrics(policy, reward_EN.detach()))

    def _metrics(self, policy: Scores, reward_EN: Tensor) -> Mapping[str, Tensor]:
        """Those of pairs: the best is the chosen one, the mean of the others the rejected one; accuracy counts pairs in their order."""
        logp_EN = policy.sums().detach().view(reward_EN.shape)
        chosen, rejected = reward_EN[:, 0].sum(), reward_EN[:, 1:].mean(-1).sum()
        is_above = (reward_EN[:, :, None] > reward_EN[:, None, :]).triu(1)
        num_pairs = self.completions * (self.completions - 1) / 2
        return {
            "reward/chosen": chosen,
            "reward/rejected": rejected,
            "reward/margin": chosen - rejected,
            "reward/accuracy": is_above.to(reward_EN.dtype).sum() / num_pairs,
            "logp/chosen": logp_EN[:, 0].sum(),
            "logp/rejected": logp_EN[:, 1:].mean(-1).sum(),
        }
