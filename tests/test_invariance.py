"""Micro-batches, packing, shared prompts and cached references are schedule, not mathematics.

In float64, for every objective that is installed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import ListCorpus, random_trees, write_model
from torch import Tensor
from zkit_attentions.segments import Segments
from zkit_mistral.backend import Lora, Mistral
from zkit_optimizers.adamw import AdamW

from zephyr_kit.plan import Plan
from zephyr_kit.plugins import Plugins
from zephyr_kit.protocols import Objective, Start
from zephyr_kit.ways import Way, take

CPU = torch.device("cpu")
STEPS, EXAMPLES_PER_STEP = 5, 8
TOLERANCE = 1e-9
OBJECTIVES = sorted(Plugins().offered(Objective).items())


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
def corpus_of(completions: int) -> Any:
    return ListCorpus(random_trees(24, completions=completions, seed=completions, longest=20, all_trained=False))


def train(weights: Path, objective: Objective, lora: Lora | None, way: Way) -> Result:
    corpus = corpus_of(objective.completions)
    backend = Mistral(weights=str(weights), dtype="float64", template="zephyr", lora=lora, attention=Segments())
    policy = backend.load(CPU, start=Start(seed=1), train=True)
    plan = Plan(corpus.lengths, 5, examples_per_step=EXAMPLES_PER_STEP, epochs=None, steps=STEPS)
    adamw = partial(AdamW(weight_decay=0.01).build, learning_rate=1e-3)
    steps = [plan.step(number) for number in range(STEPS)]
    how = {"optimizer": adamw, "learning_rate": lambda step: 1e-3 / (step + 1), "clip": 1.0}
    record = take(policy, objective, corpus, steps, way, device=CPU, **how)
    trained = {name: p.detach() for name, p in policy.module.named_parameters() if p.requires_grad}
    return Result(trained, record.losses, record.batches)


@pytest.fixture(scope="module", params=["full", "lora"])
def lora(request: pytest.FixtureRequest) -> Lora | None:
    return Lora(rank=4, alpha=8) if request.param == "lora" else None


@pytest.fixture(scope="module", params=[cls for _, cls in OBJECTIVES], ids=[name for name, _ in OBJECTIVES])
def objective(request: pytest.FixtureRequest) -> Objective:
    made: Objective = request.param()
    return made


@pytest.fixture(scope="module")
def plainly(weights: Path, objective: Objective, lora: Lora | None) -> Result:
    """One micro-batch a step, prompts shared, the reference live."""
    return train(weights, objective, lora, PLAINLY)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_the_same_parameters_after_five_steps(weights: Path, objective: Objective, lora: Lora | None, plainly: Result, way: Way) -> None:
    if way.cached and not objective.needs_reference:
        pytest.skip("the objective compares with nothing")
    if not way.share_prompts and objective.completions == 1:
        pytest.skip("one completion shares its prompt with nobody")
    other = train(weights, objective, lora, way)
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
    backend = Mistral(weights=str(weights), dtype="float64", template="zephyr", lora=lora, attention=Segments())
    fresh = dict(backend.load(CPU, start=Start(seed=1), train=True).module.named_parameters())
    moved = [float((value - fresh[name].detach()).abs().max()) for name, value in plainly.parameters.items()]
    assert min(moved) > 1e-5
    assert all(parameter.dtype == torch.float64 for parameter in plainly.parameters.values())
    assert len(set(plainly.losses)) == STEPS
