"""The objective `hinge`, as a zephyr-kit plugin."""

from dataclasses import dataclass
from typing import ClassVar

from zephyr_kit import Unit, hookimpl
from zephyr_kit.protocols import Outcome, Scores


@dataclass(frozen=True)
class Hinge:
    """relu(1 - beta h), h = log pi_w/ref_w - log pi_l/ref_l: SLiC's loss (arXiv 2305.10425) on DPO's implicit rewards."""

    beta: float = 0.1
    """Scale of the rewards; the margin aimed at is 1 / beta."""

    completions: ClassVar[int] = 2
    unit: ClassVar[Unit] = Unit.EXAMPLE
    needs_reference: ClassVar[bool] = True

    def __call__(self, policy: Scores, reference: Scores | None) -> Outcome:
        assert reference is not None
        reward = self.beta * (policy.sums() - reference.sums())
        margin = reward[0::2] - reward[1::2]
        return Outcome((1 - margin).relu().sum(), {"reward/margin": margin.detach().sum()})


@hookimpl
def zkit_objectives() -> dict[str, type]:
    return {"hinge": Hinge}
