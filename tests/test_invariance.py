"""Micro-batches, packing, shared prompts and cached references are schedule, not mathematics.

In float64, for every objective that is installed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from references import scored
from tiny import ListCorpus, random_trees, write_model
from torch import Tensor
from zkit_attentions.segments import Segments
from zkit_mistral.backend import Lora, Mistral
from zkit_optimizers.adamw import AdamW

from zephyr_kit.engine import Trainer
from zephyr_kit.feed import Feed
from zephyr_kit.plan import Plan, pack
from zephyr_kit.plugins import Plugins
from zephyr_kit.protocols import Objective, Start
from zephyr_kit.reference import ReferenceScores
from zephyr_kit.world import World

CPU = torch.device("cpu")
STEPS, EXAMPLES_PER_STEP = 5, 8
TOLERANCE = 1e-9
OBJECTIVES = sorted(Plugins().offered(Objective).items())


@dataclass(frozen=True)
class Schedule:
    """How the same steps are computed."""

    num_batches: int = 1
    share_prompts: bool = True
    cached: bool = False


SCHEDULES = {
    "3-batches": Schedule(3),
    "8-batches": Schedule(8),
    "repeated-prompts": Schedule(share_prompts=False),
    "repeated-prompts-8-batches": Schedule(8, share_prompts=False),
    "cached": Schedule(cached=True),
    "cached-repeated-prompts-3-batches": Schedule(3, share_prompts=False, cached=True),
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real small model, or a random smaller one."""
    real = Path(os.environ.get("ZKIT_SHARED") or Path(__file__).parents[2] / "shared") / "models/stories260k"
    return real.resolve() if real.is_dir() else write_model(tmp_path_factory.mktemp("model"))


@dataclass(frozen=True)
class Result:
    """What five steps led to."""

    parameters: dict[str, Tensor]
    losses: list[float]
    batches: list[int]


@cache
def corpus_of(completions: int) -> Any:
    return ListCorpus(random_trees(24, completions=completions, seed=completions, longest=20, all_trained=False))


def capacity_for(count: int, members: list[int], corpus: Any, *, share_prompts: bool) -> int:
    """A budget of tokens that cuts these examples into so many micro-batches."""
    lengths = corpus.row_lengths(share_prompts=share_prompts)
    sizes = range(int(lengths.sum()), 0, -1)
    return next(size for size in sizes if len(pack(members, lengths, size)) == count)


def train(weights: Path, objective: Objective, lora: Lora | None, schedule: Schedule, folder: Path) -> Result:
    corpus = corpus_of(objective.completions)
    backend = Mistral(weights=str(weights), dtype="float64", template="zephyr", lora=lora, attention=Segments())
    policy = backend.load(CPU, start=Start(seed=1), train=True)
    reference: ReferenceScores | None = None
    if objective.needs_reference and schedule.cached:
        reference = scored(policy, corpus, folder, capacity=150, share_prompts=schedule.share_prompts)
    elif objective.needs_reference:
        policy.keep_reference()
    adamw = partial(AdamW(weight_decay=0.01).build, learning_rate=1e-3)
    trainer = Trainer(policy, objective, optimizer=adamw, learning_rate=lambda step: 1e-3 / (step + 1), seed=3)
    plan = Plan(corpus.lengths, 5, examples_per_step=EXAMPLES_PER_STEP, epochs=None, steps=STEPS)
    feed = Feed(corpus, objective, 1, schedule.share_prompts, CPU, World(), reference)
    losses, batches = [], []
    for number in range(STEPS):
        members = plan.step(number)
        capacity = capacity_for(schedule.num_batches, members, corpus, share_prompts=schedule.share_prompts)
        work = replace(feed, capacity=capacity).step(members)
        batches.append(len(work.works))
        losses.append(trainer.step(work).means["loss"].item())
    return Result({name: p.detach().clone() for name, p in trainer.masters.optimized.items()}, losses, batches)


@pytest.fixture(scope="module", params=["full", "lora"])
def lora(request: pytest.FixtureRequest) -> Lora | None:
    return Lora(rank=4, alpha=8) if request.param == "lora" else None


@pytest.fixture(scope="module", params=[cls for _, cls in OBJECTIVES], ids=[name for name, _ in OBJECTIVES])
def objective(request: pytest.FixtureRequest) -> Objective:
    made: Objective = request.param()
    return made


@pytest.fixture(scope="module")
def plainly(weights: Path, objective: Objective, lora: Lora | None, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """One micro-batch a step, prompts shared, the reference live."""
    return train(weights, objective, lora, Schedule(), tmp_path_factory.mktemp("plainly"))


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_the_same_parameters_after_five_steps(
    weights: Path, objective: Objective, lora: Lora | None, plainly: Result, schedule: Schedule, tmp_path: Path
) -> None:
    if schedule.cached and not objective.needs_reference:
        pytest.skip("the objective compares with nothing")
    if not schedule.share_prompts and objective.completions == 1:
        pytest.skip("one completion shares its prompt with nobody")
    other = train(weights, objective, lora, schedule, tmp_path)
    assert plainly.batches == [1] * STEPS
    assert other.batches == [schedule.num_batches] * STEPS
    assert other.losses == pytest.approx(plainly.losses, rel=TOLERANCE)
    assert other.parameters.keys() == plainly.parameters.keys()
    apart = max(float((value - plainly.parameters[name]).abs().max()) for name, value in other.parameters.items())
    print(f"largest difference of a parameter: {apart:.1e}")  # noqa: T201  shown by pytest -rP
    assert apart < TOLERANCE


def test_the_five_steps_did_move(weights: Path, objective: Objective, lora: Lora | None, plainly: Result) -> None:
    """So that equality above is not that of two models which stood still."""
    backend = Mistral(weights=str(weights), dtype="float64", template="zephyr", lora=lora, attention=Segments())
    fresh = dict(backend.load(CPU, start=Start(seed=1), train=True).module.named_parameters())
    moved = [float((value - fresh[name].detach()).abs().max()) for name, value in plainly.parameters.items()]
    assert min(moved) > 1e-5
    assert all(parameter.dtype == torch.float64 for parameter in plainly.parameters.values())
    assert len(set(plainly.losses)) == STEPS
