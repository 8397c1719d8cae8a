"""The same steps computed in other ways.

Micro-batches, the order in a row, shared prompts, cached references and ranks are schedule, not
mathematics: whichever way a step is computed, its loss and its gradient are the same.
"""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zephyr_kit.engine import Trainer
from zephyr_kit.feed import Feed
from zephyr_kit.mismatched import Mismatched
from zephyr_kit.observe import Silent
from zephyr_kit.offset import Offset
from zephyr_kit.plan import pack
from zephyr_kit.protocols import Objective, Policy, survey_of
from zephyr_kit.reference import ReferenceScores, Scoring
from zephyr_kit.score_store import ScoreStore
from zephyr_kit.shares import whole
from zephyr_kit.trees import Examples, Indices
from zephyr_kit.world import World

RATE = 0.1
"""How far a step goes: far enough for the next one to be another."""


@dataclass(frozen=True, slots=True)
class Way:
    """How steps are computed."""

    room: float = 1.0
    """The share of a step's tokens that a micro-batch may hold; 0 puts each example into one of its own."""
    reverse: bool = False
    """Lay examples, and take batches, in the opposite order."""
    share_prompts: bool = True
    cached: bool = False
    """Score the reference before the first step, instead of in each."""
    sharded: bool = False
    """Share the weights out over the ranks."""
    num_in_team: int = 1
    """Ranks that compute each batch together."""


@dataclass(frozen=True)
class Record:
    """What steps led to."""

    losses: list[float] = field(default_factory=list)
    gradients: list[Tensor] = field(default_factory=list)
    """Of each step, all in one, as the optimizer gets them."""
    batches: list[int] = field(default_factory=list)
    """How many micro-batches of each step were this rank's."""

    def apart(self, other: Record) -> tuple[float, float]:
        """The largest difference of a loss, and of a gradient, as shares of the largest that there are."""
        if not len(self.gradients) == len(other.gradients) == len(self.losses):
            return float("inf"), float("inf")  # a step was skipped, for its numbers were not finite
        loss = _apart(torch.tensor(self.losses, dtype=torch.float64), torch.tensor(other.losses, dtype=torch.float64))
        return loss, max(itertools.starmap(_apart, zip(self.gradients, other.gradients, strict=True)))


Build = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


class Descent(torch.optim.Optimizer):
    """Down the gradient, a step of the same length each time: Adam would blow up what rounding leaves of zero.

    It stands on no optimizer of torch's: where a `step` calls another class's, torch may run its hooks for both.
    """

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        super().__init__(parameters, {"lr": RATE})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """After its gradients were recorded, whose length must not be hidden by clipping them."""
        nn.utils.clip_grad_norm_([p for group in self.param_groups for p in group["params"]], 1.0)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.add_(parameter.grad, alpha=-group["lr"])


def take(
    policy: Policy,
    objective: Objective,
    examples: Examples,
    steps: Sequence[Sequence[int]],
    way: Way,
    *,
    device: torch.device,
    max_length: int,
    world: World | None = None,
    offset: Offset = Offset(),  # noqa: B008  frozen
    optimizer: Build = Descent,
    learning_rate: Callable[[int], float] = lambda _: RATE,
    clip: float = 0.0,
) -> Record:
    """Take these steps, each over the examples of these indices, of which none is longer than `max_length` with one of its completions.

    They start `offset` from the reference.
    """
    world = world or World()
    if objective.needs_reference and not way.cached:
        policy.keep_reference()
    if way.num_in_team > 1:
        world = world.in_teams(way.num_in_team)
        policy.share_rows(world.team_group())
    if way.sharded:
        policy.shard(world.mesh(device.type, hybrid=False))
    feed = _feed(policy, objective, examples, way, max_length, device, world)
    offset.move(policy.module)
    trainer = Trainer(policy, objective, optimizer=optimizer, learning_rate=learning_rate, seed=0, clip=clip, world=world)
    record = Record()
    trainer.optimizer.register_step_pre_hook(lambda *_: record.gradients.append(_gradient(trainer.parameters)))
    for members in steps:
        work = feed.work(members, partial(_cut, way=way, num_teams=world.num_teams))
        record.losses.append(trainer.step(work).means["loss"].item())
        record.batches.append(len(work.works))
    return record


def _feed(
    policy: Policy, objective: Objective, examples: Examples, way: Way, max_length: int, device: torch.device, world: World
) -> Feed:
    """As a stage makes it: with reference scores, and with mismatched examples, where the objective asks for them."""

    def feed(corpus: Examples, others: Feed | None = None) -> Feed:
        reference = _scores(policy, corpus, way, device, world) if objective.needs_reference and way.cached else None
        return Feed(corpus, objective, 1, way.share_prompts, device, world, reference, others)

    survey = survey_of(objective)
    return feed(examples, feed(Mismatched(examples, max_length)) if survey is not None and survey.surveys == "mismatched" else None)


def _cut(members: Sequence[int], lengths: Indices, way: Way, num_teams: int) -> list[list[int]]:
    """The batches of a step."""
    packs = pack(members, lengths, max(1, int(way.room * sum(int(lengths[i]) for i in members))), multiple=num_teams)
    return [members[::-1] for members in packs[::-1]] if way.reverse else packs


def _scores(policy: Policy, examples: Examples, way: Way, device: torch.device, world: World) -> ReferenceScores:
    with tempfile.TemporaryDirectory() as folder, closing(ScoreStore(Path(folder), {}, "")) as store:
        capacity = int(examples.row_lengths(share_prompts=way.share_prompts).max()) * 2
        return Scoring(policy, store, device, capacity, way.share_prompts, Silent(), world).scores_of(examples, "data")


def _gradient(parameters: Sequence[nn.Parameter]) -> Tensor:
    given = (p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters)
    return torch.cat([whole(gradient).reshape(-1).cpu() for gradient in given])


def _apart(one: Tensor, other: Tensor) -> float:
    """Infinite where one of them is no number."""
    most = max(float(one.abs().max()), float(other.abs().max()))
    largest = float((one - other).abs().max())
    return float("inf") if math.isnan(largest) else largest / most if most else 0.0
