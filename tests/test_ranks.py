"""Two ranks take the step that one takes."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tiny import ListCorpus, TablePolicy, random_trees
from zkit_optimizers.adamw import AdamW
from zkit_preference.dpo import Dpo
from zkit_sft.objective import Sft

from zephyr_kit.engine import Trainer
from zephyr_kit.feed import Feed
from zephyr_kit.world import World

OBJECTIVES = {"sft": Sft(), "dpo": Dpo()}


def train(name: str, world: World) -> list[torch.Tensor]:
    """Parameters and losses after three steps in float64."""
    objective = OBJECTIVES[name]
    policy = TablePolicy(dtype=torch.float64)
    trainer = Trainer(
        policy,
        objective,
        optimizer=lambda parameters: AdamW().build(parameters, learning_rate=1e-2),
        learning_rate=lambda _: 1e-2,
        seed=0,
        world=world,
    )
    corpus = ListCorpus(random_trees(24, completions=objective.completions, vocabulary=16))
    feed = Feed(corpus, objective, 40, True, torch.device("cpu"), world)
    losses = [trainer.step(feed.step(range(first, first + 8))).means["loss"] for first in (0, 8, 16)]
    return [*losses, *(parameter.detach() for parameter in trainer.parameters)]


def rank(number: int, name: str, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=number, world_size=2)
    torch.save(train(name, World(number, 2)), folder / f"{number}.pt")
    dist.barrier()
    os._exit(0)  # gloo's threads may abort an interpreter that shuts down in order


@pytest.mark.parametrize("name", OBJECTIVES)
def test_two_ranks_take_the_step_of_one(name, tmp_path):
    mp.spawn(rank, args=(name, tmp_path), nprocs=2)
    alone = train(name, World())
    for number in (0, 1):
        for one, other in zip(torch.load(tmp_path / f"{number}.pt", weights_only=True), alone, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
