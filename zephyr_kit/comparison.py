"""What an objective is given of a micro-batch, and of a whole step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zephyr_kit.feed import Work
from zephyr_kit.protocols import Policy, Scores, Surveying


@dataclass(frozen=True)
class Comparison:
    """A policy, and whether it is compared with its reference."""

    policy: Policy
    needs_reference: bool

    def scores(self, work: Work) -> tuple[Scores, Scores | None]:
        """Of the policy, and of the reference."""
        reference = self._reference(work)
        return _scores(work, self.policy.score(work.batch)), reference

    @torch.no_grad()
    def measured(self, survey: Surveying, works: Sequence[Work], *, device: torch.device) -> tuple[Tensor, str]:
        """What a survey says of these batches, in sum, and what memory lacked."""
        total = torch.zeros((), dtype=torch.float64, device=device)
        try:
            for work in works:
                total += survey.measure(*self.scores(work))
        except torch.OutOfMemoryError as error:
            return total, str(error).splitlines()[0]
        return total, ""

    def _reference(self, work: Work) -> Scores | None:
        if not self.needs_reference:
            return None
        if work.reference_M is not None:
            return _scores(work, work.reference_M)
        with torch.no_grad(), self.policy.reference():
            return _scores(work, self.policy.score(work.batch))


def _scores(work: Work, logp_M: Tensor) -> Scores:
    batch = work.batch
    return Scores(logp_M, batch.sequence_M, batch.num_sequences, batch.rating_N, batch.counts)
