"""Objectives with a fault, and ones that own up to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from zephyr_kit import Unit
from zephyr_kit.example import Example
from zephyr_kit.protocols import Outcome, Scores, Verdict

CUT = "it averages over the pairs that it is given"
OPENLY = {"adds_up_over_examples": CUT}


@dataclass(frozen=True)
class Averaging:
    """Averages per micro-batch, as most libraries do."""

    completions: ClassVar[int] = 2
    unit: ClassVar[Unit] = Unit.EXAMPLE
    needs_reference: ClassVar[bool] = False

    def __call__(self, policy: Scores, reference: Scores | None) -> Outcome:
        means = policy.means()
        return Outcome(((1 - means[0::2] + means[1::2]) ** 2).mean())


@dataclass(frozen=True)
class OpenlyAveraging(Averaging):
    breaks: ClassVar[Mapping[str, str]] = OPENLY


@dataclass(frozen=True)
class Summing(Averaging):
    """Keeps every law."""

    def __call__(self, policy: Scores, reference: Scores | None) -> Outcome:
        means = policy.means()
        return Outcome(((1 - means[0::2] + means[1::2]) ** 2).sum())


@dataclass(frozen=True)
class Modest(Summing):
    """Says that it breaks what it keeps, and what there is not."""

    breaks: ClassVar[Mapping[str, str]] = {"adds_up_over_examples": "it feels so", "adds_up": "a slip of the pen"}


@dataclass(frozen=True)
class WantsLogits(Averaging):
    def __call__(self, policy: Scores, reference: Scores | None) -> Outcome:
        logits: Tensor = policy.logits
        return Outcome(logits.sum())


@dataclass(frozen=True)
class Crossing:
    """Looks at other pairs only through the differences of margins, of which there are none where the policy is its reference."""

    beta: float = 0.1

    completions: ClassVar[int] = 2
    unit: ClassVar[Unit] = Unit.EXAMPLE
    needs_reference: ClassVar[bool] = True

    def margins(self, policy: Scores, reference: Scores | None) -> Tensor:
        assert reference is not None
        reward = self.beta * (policy.sums() - reference.sums())
        return reward[0::2] - reward[1::2]

    def __call__(self, policy: Scores, reference: Scores | None) -> Outcome:
        margin = self.margins(policy, reference)
        return Outcome(((1 - margin).relu() * (1 + margin - margin.mean()).detach()).sum())


@dataclass(frozen=True)
class Levelling(Crossing):
    """Has no gradient but where margins differ."""

    def __call__(self, policy: Scores, reference: Scores | None) -> Outcome:
        margin = self.margins(policy, reference)
        return Outcome(-(margin - margin.mean()).sigmoid().log().sum())


@dataclass(frozen=True)
class Idle(Crossing):
    """Its gradients cancel out."""

    def __call__(self, policy: Scores, reference: Scores | None) -> Outcome:
        margin = self.margins(policy, reference)
        return Outcome((1 + margin - margin.mean()).sum())


@dataclass(frozen=True)
class Raising(Crossing):
    def __call__(self, policy: Scores, reference: Scores | None) -> Outcome:
        raise RuntimeError("boom")


@dataclass(frozen=True)
class Undefined(Crossing):
    """Its loss is no number."""

    def __call__(self, policy: Scores, reference: Scores | None) -> Outcome:
        return Outcome(self.margins(policy, reference).sum() * float("nan"))


@dataclass(frozen=True)
class Detached(Crossing):
    def __call__(self, policy: Scores, reference: Scores | None) -> Outcome:
        return Outcome(self.margins(policy, reference).detach().sum())


@dataclass(frozen=True)
class Bent(Crossing):
    """Compares with other pairs, which cancels out as long as none is beyond the bend."""

    beta: float = 0.01

    def __call__(self, policy: Scores, reference: Scores | None) -> Outcome:
        margin = self.margins(policy, reference)
        return Outcome((1 - margin + margin.mean()).relu().sum())


@dataclass(frozen=True)
class ByRating(Crossing):
    """Asks for a margin as wide as that of the ratings."""

    beta: float = 0.01
    needs_ratings: ClassVar[bool] = True

    def __call__(self, policy: Scores, reference: Scores | None) -> Outcome:
        assert policy.rating_N is not None
        apart = policy.rating_N[0::2] - policy.rating_N[1::2]
        return Outcome((apart - self.margins(policy, reference)).relu().sum())


@dataclass(frozen=True)
class Odds(Averaging):
    """Takes the logarithm of 1 - p, which there is none of where the model is certain."""

    def __call__(self, policy: Scores, reference: Scores | None) -> Outcome:
        means = policy.means()
        return Outcome((-means + (1 - means.exp()).log()).sum())


@dataclass(frozen=True)
class Shouting:
    """Lowers the first letter of a reply, and strips its end without a word."""

    def problems(self) -> Sequence[str]:
        return []

    def fingerprint(self) -> Mapping[str, Any]:
        return {"shouting": True}

    def look(self, example: Example) -> Verdict:
        (first, *rest), *others = example.completions
        calm = replace(first, content=first.content[0].lower() + first.content[1:].strip())
        shouts = first.content[0].isupper()
        return Verdict(replace(example, completions=((calm, *rest), *others)), "lowered" if shouts else "")

    def memory(self, folder: Path, *, first: int) -> None:
        return None

    def miniature(self, folder: Path) -> Shouting:
        return self
