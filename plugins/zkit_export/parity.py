"""How far a model is from what it was before it was exported."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zephyr_kit.batch import Tree
from zkit_export.probes import Look, row
from zkit_export.refusal import ParityError

After = Callable[[Tree], Tensor]
"""What the exported model says in the place of each target of an example, (M, V)."""

ALLOWED = {
    "float32": (1e-3, 1e-4),
    "bfloat16": (0.1, 0.02),
    "float16": (0.1, 0.02),
    "8 bits": (0.15, 0.03),
    "4 bits": (0.4, 0.2),
    "fewer bits": (1.0, 0.8),
}
"""The mean difference of log-probabilities, and the KL divergence, that rounding to a type explains, the coarsest last."""


@dataclass(frozen=True, slots=True)
class Parity:
    """The two models compared, token by token; in nats."""

    what: str
    num_tokens: int
    mean: float
    """Of the absolute difference of a token's log-probability."""
    largest: float
    kl: float
    """KL(before || after), the mean over all places."""
    first_divergence: int | None
    """The first token of a greedy reply that would be another, over all replies; None if there is none."""
    agreement: float
    """The share of places where both find the same token likeliest."""
    allowed: tuple[float, float]
    """For `mean`, and for `kl`."""

    def check(self) -> None:
        """Raise ParityError where the difference is more than rounding explains."""
        # NaN compares as false, and is not to pass.
        if not (self.mean <= self.allowed[0] and self.kl <= self.allowed[1]):
            raise ParityError(
                f"{self.what} is not the model that was trained: log-probabilities differ by {self.mean:.4g} on average (at most "
                f"{self.largest:.4g}), KL {self.kl:.4g}, where its type explains {self.allowed[0]:g} and {self.allowed[1]:g}; "
                "nothing was kept"
            )


def compare(what: str, before: Look, after: After, *, allowed: tuple[float, float]) -> Parity:
    """Ask the exported model the same, and compare."""
    differences, kls, agreements, firsts = [], [], [], []
    num_data = len(before.trees) - before.num_own
    for number, (tree, logp_MV) in enumerate(zip(before.trees, before.logp_MV, strict=True)):
        theirs_MV = after(tree).float().cpu()[:, : logp_MV.shape[1]]
        target_M1 = row(tree).target_M[:, None]
        differences.append((theirs_MV.gather(1, target_M1) - logp_MV.gather(1, target_M1))[:, 0].abs())
        kls.append((logp_MV.exp() * (logp_MV - theirs_MV)).nan_to_num(nan=torch.inf).sum(1))
        same_M = theirs_MV.argmax(1) == logp_MV.argmax(1)
        agreements.append(same_M)
        if number >= num_data:
            firsts += (~same_M).nonzero()[:1, 0].tolist()
    difference_M = torch.cat(differences)
    return Parity(
        what,
        len(difference_M),
        float(difference_M.mean()),
        float(difference_M.max()),
        max(0.0, float(torch.cat(kls).mean())),
        min(firsts, default=None),
        float(torch.cat(agreements).float().mean()),
        allowed,
    )


def allowed_for(*types: str) -> tuple[float, float]:
    """What the coarsest of these types explains."""
    return max(ALLOWED[name] for name in types)


def told(found: Sequence[Parity]) -> list[tuple[str, ...]]:
    """A row for each, under `HEAD`."""
    return [
        (
            one.what,
            f"{one.num_tokens:,}",
            f"{one.mean:.2g}",
            f"{one.largest:.2g}",
            f"{one.kl:.2g}",
            f"{one.agreement:.1%}",
            "none" if one.first_divergence is None else f"token {one.first_divergence + 1}",
        )
        for one in found
    ]


def lines(found: Sequence[Parity]) -> Iterator[str]:
    """The figures in columns."""
    cells = [HEAD, *told(found)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEAD))]
    for line in cells:
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()


HEAD = ("export", "tokens", "mean difference", "largest", "KL", "same likeliest token", "first greedy divergence")
