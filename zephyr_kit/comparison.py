"""What an objective is given of a micro-batch, and of a whole step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from zephyr_kit.feed import StepWork, Work
from zephyr_kit.protocols import Policy, Scores, Surveying


@dataclass(frozen=True)
class Measured:
    """What a survey says of a step on this rank."""

    total: Tensor
    num_units: int
    """What the mean over all ranks divides by."""
    works: Sequence[Work]
    """The batches of the step, with what has been learnt of the reference on the way."""
    lack: str = ""
    """What memory lacked."""


@dataclass(frozen=True)
class Comparison:
    """A policy, and whether it is compared with its reference."""

    policy: Policy
    needs_reference: bool

    def scores(self, work: Work) -> tuple[Scores, Scores | None]:
        """Of the policy, and of the reference."""
        reference_M = self._referred(work).reference_M
        return _scores(work, self.policy.score(work.batch)), None if reference_M is None else _scores(work, reference_M)

    @torch.no_grad()
    def measured(self, survey: Surveying, step: StepWork, *, device: torch.device) -> Measured:
        """What a survey says of this rank's batches, in sum; without dropout, whose draws would depend on how they are cut."""
        own = survey.surveys == "own"
        total, works, lack = torch.zeros((), dtype=torch.float64, device=device), [], ""
        try:
            with _evaluating(self.policy.module):
                for work in step.works if own else step.mismatched:
                    works.append(self._referred(work))
                    total += survey.measure(*self.scores(works[-1]))
        except torch.OutOfMemoryError as error:
            lack = str(error).splitlines()[0]
        return Measured(total, step.num_units, works, lack) if own else Measured(total, step.num_mismatched, step.works, lack)

    def _referred(self, work: Work) -> Work:
        """With the scores of the reference, if it is compared with that."""
        if not self.needs_reference or work.reference_M is not None:
            return work
        with torch.no_grad(), self.policy.reference():
            return replace(work, reference_M=self.policy.score(work.batch))


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


def _scores(work: Work, logp_M: Tensor) -> Scores:
    batch = work.batch
    return Scores(logp_M, batch.sequence_M, batch.num_sequences, batch.rating_N, batch.counts)
