"""Weights a little way off from where a stage starts.

There the policy equals its reference: every margin is zero, and so is whatever an objective makes
of the differences between margins. A fault in it would not be seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zephyr_kit.batch import Tree, lay_out
from zephyr_kit.protocols import Policy, Scores
from zephyr_kit.shares import put, whole

NATS = 4.0
"""How far the log-probability of a completion is to move: 0.4 in rewards at a beta of 0.1."""
AMOUNTS = tuple(1e-4 * 2**power for power in range(14))


@dataclass(frozen=True, slots=True)
class Offset:
    """Normal noise on every trained weight, the same on all ranks."""

    amount: float = 0.0
    """Its deviation."""
    seed: int = 0

    @torch.no_grad()
    def move(self, module: nn.Module) -> None:
        """Add it."""
        draws: dict[torch.device, torch.Generator] = {}
        for parameter in (p for p in module.parameters() if p.requires_grad and self.amount):
            draw = draws.setdefault(parameter.device, torch.Generator(parameter.device).manual_seed(self.seed))
            noise = torch.randn(parameter.shape, generator=draw, device=parameter.device, dtype=parameter.dtype)
            put(noise.mul_(self.amount).add_(whole(parameter.data)), parameter)


def far_enough(policy: Policy, trees: Sequence[Tree], *, seed: int, device: torch.device) -> Offset:
    """The least offset with which completions of these trees are as much likelier or less as `NATS` says; the policy is moved by it."""
    before, moved = _sums(policy, trees, device), 0.0
    for amount in AMOUNTS:
        Offset(amount - moved, seed).move(policy.module)
        moved = amount
        if float((_sums(policy, trees, device) - before).square().mean()) >= NATS**2:
            break
    return Offset(moved, seed)


@torch.no_grad()
def _sums(policy: Policy, trees: Sequence[Tree], device: torch.device) -> Tensor:
    """The log-probability of each completion."""
    policy.module.eval()
    batches = [lay_out([tree], share_prompts=False) for tree in trees]
    scores = (Scores(policy.score(batch.to(device)).cpu(), batch.sequence_M, batch.num_sequences) for batch in batches)
    return torch.cat([one.sums() for one in scores])
