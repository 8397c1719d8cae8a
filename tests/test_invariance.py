"""Micro-batches, packing, shared prompts and cached references are schedule, not mathematics.

In float64: for objectives of every kind with a transformer, and for every one that is installed with a table of logits.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from objectives import OBJECTIVES
from tiny import ListCorpus, TablePolicy, random_trees, write_model
from torch import Tensor
from zkit_attentions.segments import Segments
from zkit_mistral.backend import Lora, Mistral
from zkit_optimizers.adamw import AdamW

from zephyr_kit.plan import Plan
from zephyr_kit.plugins import Plugins
from zephyr_kit.protocols import Objective, Policy, Start
from zephyr_kit.ways import Way, take

CPU = torch.device("cpu")
STEPS, EXAMPLES_PER_STEP = 5, 8
TOLERANCE = 1e-9
IN_EVERY_WAY = ["sft", "dpo", "ipo"]
OF_OTHER_KINDS = ["kto", "bco", "listwise_dpo", "sum"]
"""Looking at the whole step, at more than two completions, or at some of them."""


PLAINLY = Way()
WAYS = {
    "few-batches": Way(0.4),
    "each-alone": Way(0),
    "opposite-order": Way(reverse=True),
    "repeated-prompts": Way(share_prompts=False),
    "repeated-prompts-each-alone": Way(0, share_prompts=False),
    "cached": Way(cached=True),
    "cached-repeated-prompts-few-batches": Way(0.4, share_prompts=False, cached=True),
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


def transformer(weights: Path, lora: Lora | None) -> Policy:
    backend = Mistral(weights=str(weights), dtype="float64", template="zephyr", lora=lora, attention=Segments())
    return backend.load(CPU, start=Start(seed=1), train=True)


def train(policy: Policy, objective: Objective, way: Way, *, vocabulary: int = 258) -> Result:
    corpus = corpus_of(objective.completions, vocabulary)
    plan = Plan(corpus.lengths, 5, examples_per_step=EXAMPLES_PER_STEP, epochs=None, steps=STEPS)
    adamw = partial(AdamW(weight_decay=0.01).build, learning_rate=1e-3)
    steps = [plan.step(number) for number in range(STEPS)]
    how = {"optimizer": adamw, "learning_rate": lambda step: 1e-3 / (step + 1), "clip": 1.0}
    record = take(policy, objective, corpus, steps, way, device=CPU, max_length=30, **how)
    trained = {name: p.detach() for name, p in policy.module.named_parameters() if p.requires_grad}
    return Result(trained, record.losses, record.batches)


@pytest.fixture(scope="module", params=["full", "lora"])
def lora(request: pytest.FixtureRequest) -> Lora | None:
    return Lora(rank=4, alpha=8) if request.param == "lora" else None


@pytest.fixture(scope="module", params=IN_EVERY_WAY)
def objective(request: pytest.FixtureRequest) -> Objective:
    return OBJECTIVES[request.param][0]


@pytest.fixture(scope="module")
def plainly(weights: Path, objective: Objective, lora: Lora | None) -> Result:
    """One micro-batch a step, prompts shared, the reference live."""
    return train(transformer(weights, lora), objective, PLAINLY)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_the_same_parameters_after_five_steps(weights: Path, objective: Objective, lora: Lora | None, plainly: Result, way: Way) -> None:
    if way.cached and not objective.needs_reference:
        pytest.skip("the objective compares with nothing")
    if not way.share_prompts and objective.completions == 1:
        pytest.skip("one completion shares its prompt with nobody")
    same(plainly, train(transformer(weights, lora), objective, way), way)


def same(plainly: Result, other: Result, way: Way) -> None:
    assert plainly.batches == [1] * STEPS
    few = range(2, EXAMPLES_PER_STEP) if way.room else [EXAMPLES_PER_STEP]
    assert all(count in ([1] if way.room == 1 else few) for count in other.batches)
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
def test_objectives_of_other_kinds(weights: Path, name: str) -> None:
    objective, way = OBJECTIVES[name][0], WAYS["cached-repeated-prompts-few-batches"]
    plainly, other = (train(transformer(weights, None), objective, each) for each in (PLAINLY, way))
    same(plainly, other, way)
    assert len(set(plainly.losses)) == STEPS


@pytest.mark.parametrize("name", sorted(Plugins().offered(Objective)))
def test_every_objective_with_a_table(name: str) -> None:
    """The engine's part of the above, for all settings that are tried anywhere."""
    for objective in OBJECTIVES[name]:
        plainly = train(table(), objective, PLAINLY, vocabulary=16)
        assert len(set(plainly.losses)) == STEPS
        for way in WAYS.values():
            same(plainly, train(table(), objective, way, vocabulary=16), way)


def table() -> TablePolicy:
    return TablePolicy(vocabulary=16, dtype=torch.float64)
