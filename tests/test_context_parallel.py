"""A row that ranks compute together is the row that one computes; tests/test_ranks.py trains so under every objective."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from forked import spawn
from policies import PAIRS, backend
from tiny import TablePolicy, random_trees, write_model
from tiny_presets import FROM_SCRATCH
from torch import nn
from zkit_attentions.dense import Dense
from zkit_mistral.backend import Lora, Quantize
from zkit_mistral.noise import noisy
from zkit_optimizers.adamw import AdamW
from zkit_sft.objective import Sft

from zephyr_kit import ZkitError
from zephyr_kit.batch import Batch, Tree, idle, lay_out
from zephyr_kit.cli import build
from zephyr_kit.engine import LackError, Trainer
from zephyr_kit.footprint import ACTIVATIONS, HEAD, WEIGHTS
from zephyr_kit.pretended import pretended_mesh, pretended_team
from zephyr_kit.protocols import Start
from zephyr_kit.rehearsal import PlannedStep, rehearse
from zephyr_kit.world import World

CPU = torch.device("cpu")
SETTINGS: dict[str, dict[str, Any]] = {
    "dense": {"dtype": "float64", "attention": Dense()},
    "block": {"dtype": "float64", "activation_checkpointing": "block"},
    "selective": {"dtype": "float64", "activation_checkpointing": "selective", "lora": Lora(rank=4)},
    "on 4 bits": {"lora": Lora(rank=4), "quantize": Quantize()},
}
BATCHES = {
    "pairs": lay_out(PAIRS),
    "long and short": lay_out(random_trees(3, longest=40)),
    "shorter than the team": idle(),
    "one target": lay_out([Tree(np.array([5], np.int32), (np.array([7], np.int32),), (np.array([True]),))]),
}


def scored(world: World, weights: Path) -> dict[str, Any]:
    """Scores, and the whole of the gradient of a weighted sum of them, in every setting."""
    found: dict[str, Any] = {}
    for name, settings in SETTINGS.items():
        policy = backend(weights, **settings).load(CPU, start=Start(seed=1), train=True)
        if world.size > 1:
            policy.share_rows(world.in_teams(world.size).team_group())
        policy.module.train()
        for kind, batch in BATCHES.items():
            logp_M = policy.score(batch)
            (logp_M * torch.arange(1, len(logp_M) + 1)).sum().backward()
            found[f"{name}, {kind}"] = {"scores": logp_M.detach(), "gradient": world.total(_gradient(policy.module))}
    return found


def _gradient(module: nn.Module) -> torch.Tensor:
    trained = [p for p in module.parameters() if p.requires_grad]
    found = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in trained])
    module.zero_grad()
    return found


@pytest.fixture(scope="module", params=["whole rows", "a sliding window"])
def weights(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    window = {"sliding_window": 8} if request.param == "a sliding window" else {}
    return write_model(tmp_path_factory.mktemp("model"), num_key_value_heads=4, **window)


@pytest.mark.parametrize("size", [2, 4])
def test_scores_and_gradients_are_those_of_one(weights: Path, tmp_path: Path, size: int) -> None:
    alone, ranks = scored(World(), weights), spawn(scored, size, tmp_path, weights)
    for rank in ranks:
        for name, figures in alone.items():
            tolerance = 2e-4 if name.startswith("on 4 bits") else 1e-11
            for what, value in figures.items():
                largest = float((rank[name][what] - value).abs().max()) if value.numel() else 0.0
                assert largest <= tolerance * max(1.0, float(value.abs().max()) if value.numel() else 0.0), (name, what)


def test_each_device_keeps_its_part_of_the_activations(tmp_path: Path) -> None:
    # Almost all tokens are read: one device alone is spared the others.
    trees = tuple(replace(tree, prompt=tree.prompt[:1]) for tree in random_trees(40, longest=400))
    planned = PlannedStep(backend(write_model(tmp_path, num_key_value_heads=4)), Start(), Sft(), AdamW(), trees)
    alone = rehearse(planned)
    with pretended_team(4) as team:
        shared = rehearse(planned, None, team)
    assert shared.training[ACTIVATIONS] < 0.4 * alone.training[ACTIVATIONS]
    assert shared.training[HEAD] < 0.4 * alone.training[HEAD]
    assert shared.training[WEIGHTS] == alone.training[WEIGHTS]
    assert shared.flops == pytest.approx(alone.flops, rel=0.01)
    with pretended_mesh(4) as mesh, pretended_team(4) as team:
        both = rehearse(planned, mesh, team)
    assert both.training[WEIGHTS] < 0.5 * shared.training[WEIGHTS]


def test_noise_is_that_of_the_tokens() -> None:
    batch: Batch = lay_out(PAIRS)
    table = nn.Embedding(300, 4)
    nn.init.zeros_(table.weight)
    drawn = torch.stack([_noise(table, batch, slice(3, 9)) for _ in range(400)]).abs().amax((0, 2))
    whole = torch.stack([_noise(table, batch, slice(None)) for _ in range(400)]).abs().amax((0, 2))
    torch.testing.assert_close(drawn, whole[3:9], rtol=0.02, atol=0)


def _noise(table: nn.Embedding, batch: Batch, part: slice) -> torch.Tensor:
    with noisy(table, batch, 5.0, part), torch.no_grad():
        return table(batch.tokens_T[part])


def test_what_cannot_be_divided_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ZkitError, match=r"`train.context_parallel` = 2 does not divide the 3 devices"):
        World(0, 3).in_teams(2)
    assert World().in_teams(2) == World()
    policy = backend(write_model(tmp_path)).load(CPU, start=Start(), train=True)
    told = "does not divide the model's 4 heads and 2 heads of keys and values; it may be 1 or 2"
    with pretended_team(4) as team, pytest.raises(ZkitError, match=told):
        policy.share_rows(team)


def test_teams_take_batches_in_turn() -> None:
    worlds = [replace(World(rank, 4), num_in_team=2) for rank in range(4)]
    assert [world.mine("abcde") for world in worlds] == ["ace", "ace", "bd", "bd"]


PRESET = 'name = "tiny"\n' + FROM_SCRATCH + """
[stages.sft]
objective = "sft"
data = [{ use = "quickstart", part = "chat", count = 8 }]
max_length = 512
train = { steps = 2, examples_per_step = 4, learning_rate = 1e-3, context_parallel = 2 }
"""


def test_a_plan_refuses_it_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(PRESET)
    result = CliRunner().invoke(build(), ["plan", str(tmp_path / "tiny.toml"), "--devices", "2"])
    assert isinstance(result.exception, ZkitError)
    told = "[stages.sft] `train.context_parallel` = 2 does not divide the model's 2 heads and 1 heads of keys and values"
    assert str(result.exception).startswith(told)


def test_a_rank_that_lacks_memory_does_not_wait_for_its_team() -> None:
    world = replace(World(0, 2), num_in_team=2)
    optimizer = partial(AdamW().build, learning_rate=1e-2)
    trainer = Trainer(TablePolicy(), Sft(), optimizer=optimizer, learning_rate=lambda _: 1e-2, seed=0, world=world)
    with pytest.raises(LackError, match=r"out of memory \(no room\); from here on in smaller batches"):
        trainer._share_lack("no room")
