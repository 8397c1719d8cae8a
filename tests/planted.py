"""Objectives with a fault, and ones that own up to it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from zephyr_kit import Unit
from zephyr_kit.batch import Batch, visible
from zephyr_kit.example import Example
from zephyr_kit.protocols import Leaner, Outcome, Scores, Verdict
from zephyr_kit.testing import Laws
from zephyr_kit.testing.check import Finding, Subject

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
        return Outcome(((1 - means[0::2] + means[1::2]) ** 2).sum() / max(1, len(means) // 2))


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
class Seeding(Crossing):
    """Sets torch's random numbers back."""

    def __call__(self, policy: Scores, reference: Scores | None) -> Outcome:
        torch.manual_seed(0)
        return Outcome(self.margins(policy, reference).sum() * torch.rand(()))


@dataclass(frozen=True)
class Writing(Crossing):
    """Writes into the reference."""

    def __call__(self, policy: Scores, reference: Scores | None) -> Outcome:
        assert reference is not None
        reference.logp_M.clamp_(min=-0.5)
        return Outcome(self.margins(policy, reference).sum())


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
        calm = replace(first, content=first.content[:1].lower() + first.content[1:].strip())
        shouts = first.content[:1].isupper()
        return Verdict(replace(example, completions=((calm, *rest), *others)), "lowered" if shouts else "")

    def memory(self, folder: Path, *, first: int) -> None:
        return None

    def miniature(self, folder: Path) -> Shouting:
        return self


@dataclass(frozen=True)
class Wide(Crossing):
    """Halves the gradient, and that alone, where any margin of the batch is wide."""

    beta: float = 1.0

    def __call__(self, policy: Scores, reference: Scores | None) -> Outcome:
        margin = self.margins(policy, reference)
        loss = -logsigmoid(margin).sum()
        if bool((margin.detach() > 3).any()):
            loss = loss / 2 + loss.detach() / 2
        return Outcome(loss)


@dataclass(frozen=True)
class Unasked(Crossing):
    """Reads ratings, and does not say so."""

    def __call__(self, policy: Scores, reference: Scores | None) -> Outcome:
        assert policy.rating_N is not None
        apart = policy.rating_N[0::2] - policy.rating_N[1::2]
        return Outcome((apart - self.margins(policy, reference)).square().sum())


@dataclass(frozen=True)
class Careless:
    """Attention one row at a time, with one of its faults."""

    fault: str

    def problems(self, device: torch.device) -> Sequence[str]:
        return []

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, batch: Batch, *, scale: float, window: int | None, dropout: float
    ) -> Tensor:
        groups = len(query) // len(key)
        key, value = key.repeat_interleave(groups, 0), value.repeat_interleave(groups, 0)
        scale = query.shape[-1] ** -0.5 if self.fault == "scale" else scale
        seen = visible(batch, window=None if self.fault == "window" else window)
        scores = (query @ key.transpose(1, 2) * scale).masked_fill(~seen, float("-inf"))
        if self.fault == "no maximum":
            weights = scores.exp()
            return weights / weights.sum(-1, keepdim=True) @ value
        return scores.softmax(-1) @ value


@dataclass(frozen=True)
class Stepping:
    """Optimizers with a fault."""

    fault: str
    updates_bfloat16: bool = False

    def build(self, parameters: Iterable[torch.nn.Parameter], *, learning_rate: float) -> torch.optim.Optimizer:
        some = list(parameters)
        return torch.optim.SGD(some[:1] if self.fault == "first only" else some, lr=learning_rate)

    def leaner(self) -> Sequence[Leaner]:
        return []


@dataclass(frozen=True)
class Unlucky(Shouting):
    """Removes rows by Python's hashes, which are others in each process."""

    def look(self, example: Example) -> Verdict:
        unlucky = hash(example.completions[0][0].content) % 2
        return Verdict(None, "unlucky") if unlucky else Verdict(example, "")


@dataclass(frozen=True)
class Cutting(Shouting):
    """Keeps the first turn of a reply, and no system message, and says nothing of it."""

    def look(self, example: Example) -> Verdict:
        kept = tuple(message for message in example.prompt if message.role != "system")
        return Verdict(replace(example, prompt=kept, completions=tuple(turns[:1] for turns in example.completions)), "cut")


def found(kit: type[Laws], subject: object, **more: object) -> dict[str, Finding]:
    made = type("Tried", (kit,), {kit.subject: subject, **more})
    return {finding.law.name: finding for finding in Subject("it", made).findings()}


def broken(findings: dict[str, Finding]) -> set[str]:
    return {name for name, finding in findings.items() if finding.outcome == "broken"}
