"""Micro-batches, packing, shared prompts and cached references are schedule, not mathematics.

In float64: for objectives of every kind with a transformer, and for every one that is installed with a table of logits.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from objectives import OBJECTIVES, feed_of
from tiny import ListCorpus, TablePolicy, random_trees, write_model
from torch import Tensor
from zkit_attentions.segments import Segments
from zkit_mistral.backend import Lora, Mistral
from zkit_optimizers.adamw import AdamW

from zephyr_kit.engine import Trainer
from zephyr_kit.plan import Plan, pack
from zephyr_kit.plugins import Plugins
from zephyr_kit.protocols import Objective, Policy, Start

CPU = torch.device("cpu")
STEPS, EXAMPLES_PER_STEP = 5, 8
TOLERANCE = 1e-9
IN_EVERY_WAY = ["sft", "dpo", "ipo"]
OF_OTHER_KINDS = ["kto", "bco", "listwise_dpo", "sum"]
"""Looking at the whole step, at more than two completions, or at some of them."""


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
def corpus_of(completions: int, vocabulary: int = 258) -> Any:
    trees = random_trees(24, completions=completions, seed=completions, vocabulary=vocabulary, longest=20, all_trained=False)
    return ListCorpus(trees)


def capacity_for(count: int, members: list[int], corpus: Any, *, share_prompts: bool) -> int:
    """A budget of tokens that cuts these examples into so many micro-batches."""
    lengths = corpus.row_lengths(share_prompts=share_prompts)
    sizes = range(int(lengths.sum()), 0, -1)
    return next(size for size in sizes if len(pack(members, lengths, size)) == count)


def transformer(weights: Path, lora: Lora | None) -> Policy:
    backend = Mistral(weights=str(weights), dtype="float64", template="zephyr", lora=lora, attention=Segments())
    return backend.load(CPU, start=Start(seed=1), train=True)


def train(policy: Policy, objective: Objective, schedule: Schedule, folder: Path, *, vocabulary: int = 258) -> Result:
    corpus = corpus_of(objective.completions, vocabulary)
    cached = (policy, folder) if schedule.cached else None
    feed = feed_of(objective, corpus, 1, share_prompts=schedule.share_prompts, cached=cached)
    if objective.needs_reference and not schedule.cached:
        policy.keep_reference()
    adamw = partial(AdamW(weight_decay=0.01).build, learning_rate=1e-3)
    trainer = Trainer(policy, objective, optimizer=adamw, learning_rate=lambda step: 1e-3 / (step + 1), seed=3)
    plan = Plan(corpus.lengths, 5, examples_per_step=EXAMPLES_PER_STEP, epochs=None, steps=STEPS)
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


@pytest.fixture(scope="module", params=IN_EVERY_WAY)
def objective(request: pytest.FixtureRequest) -> Objective:
    return OBJECTIVES[request.param][0]


@pytest.fixture(scope="module")
def plainly(weights: Path, objective: Objective, lora: Lora | None, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """One micro-batch a step, prompts shared, the reference live."""
    return train(transformer(weights, lora), objective, Schedule(), tmp_path_factory.mktemp("plainly"))


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_the_same_parameters_after_five_steps(
    weights: Path, objective: Objective, lora: Lora | None, plainly: Result, schedule: Schedule, tmp_path: Path
) -> None:
    if schedule.cached and not objective.needs_reference:
        pytest.skip("the objective compares with nothing")
    if not schedule.share_prompts and objective.completions == 1:
        pytest.skip("one completion shares its prompt with nobody")
    other = train(transformer(weights, lora), objective, schedule, tmp_path)
    same(plainly, other, schedule)


def same(plainly: Result, other: Result, schedule: Schedule) -> None:
    assert plainly.batches == [1] * STEPS
    assert other.batches == [schedule.num_batches] * STEPS
    assert other.losses == pytest.approx(plainly.losses, rel=TOLERANCE)
    assert other.parameters.keys() == plainly.parameters.keys()
    apart = max(float((value - plainly.parameters[name]).abs().max()) for name, value in other.parameters.items())
    print(f"largest difference of a parameter: {apart:.1e}")  # noqa: T201  shown by pytest -rP
    assert apart < TOLERANCE


def test_the_five_steps_did_move(weights: Path, objective: Objective, lora: Lora | None, plainly: Result) -> None:
    """So that equality above is not that of two models which stood still."""
    fresh = dict(transformer(weights, lora).module.named_parameters())
    moved = [float((value - fresh[name].detach()).abs().max()) for name, value in plainly.parameters.items()]
    assert min(moved) > 1e-5
    assert all(parameter.dtype == torch.float64 for parameter in plainly.parameters.values())
    assert len(set(plainly.losses)) == STEPS


@pytest.mark.parametrize("name", OF_OTHER_KINDS)
def test_objectives_of_other_kinds(weights: Path, name: str, tmp_path: Path) -> None:
    objective, schedule = OBJECTIVES[name][0], SCHEDULES["cached-repeated-prompts-3-batches"]
    plainly, other = (train(transformer(weights, None), objective, each, tmp_path) for each in (Schedule(), schedule))
    same(plainly, other, schedule)
    assert len(set(plainly.losses)) == STEPS


@pytest.mark.parametrize("name", sorted(Plugins().offered(Objective)))
def test_every_objective_with_a_table(name: str, tmp_path: Path) -> None:
    """The engine's part of the above, for all settings that are tried anywhere."""
    for number, objective in enumerate(OBJECTIVES[name]):
        tables = [TablePolicy(vocabulary=16, dtype=torch.float64) for _ in range(1 + len(SCHEDULES))]
        plainly = train(tables[0], objective, Schedule(), tmp_path, vocabulary=16)
        assert len(set(plainly.losses)) == STEPS
        for table, schedule in zip(tables[1:], SCHEDULES.values(), strict=True):
            same(plainly, train(table, objective, schedule, tmp_path / f"{number}", vocabulary=16), schedule)
