"""However many ranks take it, and however the weights are shared out, it is the same step."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from forked import spawn
from objectives import feed_of
from policies import backend
from tiny import ListCorpus, TablePolicy, random_trees, write_model
from torch.distributed import TCPStore
from zkit_mistral.backend import Lora, Quantize
from zkit_optimizers.adamw import AdamW
from zkit_preference.bco import Bco
from zkit_preference.dpo import Dpo
from zkit_preference.ipo import Ipo
from zkit_preference.kto import Kto
from zkit_sft.objective import Sft

from zephyr_kit import ZkitError
from zephyr_kit.checkpoint import Checkpoints
from zephyr_kit.engine import Trainer
from zephyr_kit.feed import Feed
from zephyr_kit.footprint import nbytes
from zephyr_kit.heartbeat import Heart, Signs
from zephyr_kit.plan import Plan
from zephyr_kit.pretended import pretended_mesh
from zephyr_kit.protocols import Start
from zephyr_kit.shares import whole
from zephyr_kit.world import World

CPU = torch.device("cpu")
OBJECTIVES = {"sft": Sft(), "dpo": Dpo(), "ipo": Ipo(), "kto": Kto(), "bco": Bco()}
IN_EVERY_WAY = ("sft", "dpo", "ipo")
STEPS = 3
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Case:
    """A way to take three steps in float64."""

    objective: str
    lora: bool
    sharding: str
    live: bool = False
    """Whether the reference is scored at each step."""
    team: int = 1
    """Ranks that compute each batch together."""

    def __str__(self) -> str:
        told = f"{self.objective}-{'lora' if self.lora else 'full'}-{self.sharding}{'-live' if self.live else ''}"
        return told if self.team == 1 else f"{told}-teams of {self.team}"


CASES = [Case(objective, lora, sharding) for objective in IN_EVERY_WAY for lora in (False, True) for sharding in ("replicated", "sharded")]
CASES += [Case(objective, lora, "hybrid") for objective, lora in (("sft", False), ("dpo", True))]
CASES += [Case("kto", False, "sharded"), Case("kto", True, "replicated", live=True), Case("bco", False, "sharded", live=True)]
CASES += [Case("dpo", lora, sharding, live=True) for lora in (False, True) for sharding in ("replicated", "sharded")]
CASES += [Case(objective, lora, "replicated", team=2) for objective in IN_EVERY_WAY for lora in (False, True)]
CASES += [Case("dpo", False, "sharded", team=2), Case("dpo", False, "replicated", live=True, team=2)]
CASES += [Case("bco", True, "sharded", live=True, team=2), Case("kto", False, "hybrid", live=True, team=2)]


def train(case: Case, world: World, weights: Path, folder: Path) -> dict[str, Any]:
    """Losses, and what was trained."""
    objective, world = OBJECTIVES[case.objective], world.in_teams(case.team)
    corpus = ListCorpus(random_trees(24, completions=objective.completions, longest=20))
    lora = Lora(rank=4, alpha=8) if case.lora else None
    policy = backend(weights, dtype="float64", lora=lora).load(CPU, start=Start(seed=1), train=True)
    if case.live:
        policy.keep_reference()
    if world.num_in_team > 1:
        policy.share_rows(world.team_group())
    if world.size > 1 and case.sharding != "replicated":
        policy.shard(world.mesh("cpu", hybrid=case.sharding == "hybrid"))
    adamw = partial(AdamW(weight_decay=0.01).build, learning_rate=1e-3)
    trainer = Trainer(policy, objective, optimizer=adamw, learning_rate=lambda step: 1e-3 / (step + 1), seed=3, world=world)
    feed = feed_of(objective, corpus, 100, cached=None if case.live else (policy, folder), world=world)
    plan = Plan(corpus.lengths, 5, examples_per_step=8, epochs=None, steps=STEPS)
    totals = [trainer.step(feed.step(plan.step(number))) for number in range(STEPS)]
    policy.module.eval()
    held_out = trainer.evaluate([feed.step(range(3))])
    return {
        "losses": [float(each.means["loss"]) for each in totals],
        "norms": [float(each.gradient_norm) for each in totals],
        "held out": held_out["loss"],
        "weights": {name: whole(p.detach()) for name, p in trainer.masters.optimized.items()},
    }


def every(world: World, weights: Path, folder: Path) -> dict[str, Any]:
    """All cases in one process, which takes long to begin."""
    cases = [case for case in CASES if case.sharding != "hybrid" or world.size > world.local_size]
    return {str(case): train(case, world, weights, folder / str(case)) for case in cases}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request: pytest.FixtureRequest, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Mapping[str, Any]]:
    """What every rank found, of two ranks on one machine, or of four on two."""
    folder = tmp_path_factory.mktemp("ranks")
    return spawn(every, request.param, folder, weights, folder / "scores", local_size=2)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_step_of_one(case: Case, ranks: list[Mapping[str, Any]], weights: Path, tmp_path: Path) -> None:
    if str(case) not in ranks[0]:
        pytest.skip("one machine")
    alone = train(case, World(), weights, tmp_path)
    for rank in ranks:
        found = rank[str(case)]
        assert found["losses"] == pytest.approx(alone["losses"], rel=TOLERANCE)
        assert found["norms"] == pytest.approx(alone["norms"], rel=TOLERANCE)
        assert found["held out"] == pytest.approx(alone["held out"], rel=TOLERANCE)
        assert found["weights"].keys() == alone["weights"].keys()
        for key, value in alone["weights"].items():
            assert float((found["weights"][key] - value).abs().max()) < TOLERANCE, key


@dataclass(frozen=True)
class Journey:
    """Steps on some ranks, and the rest on others."""

    lora: bool
    sharding: str

    def __str__(self) -> str:
        return f"{'lora' if self.lora else 'full'}-{self.sharding}"


JOURNEYS = [Journey(lora, sharding) for lora in (False, True) for sharding in ("replicated", "sharded")]


def trainer_of(journey: Journey, world: World, weights: Path) -> tuple[Trainer, Feed, Plan]:
    corpus = ListCorpus(random_trees(24, longest=20))
    lora = Lora(rank=4, alpha=8) if journey.lora else None
    policy = backend(weights, dtype="float64", lora=lora).load(CPU, start=Start(seed=1), train=True)
    if world.size > 1 and journey.sharding != "replicated":
        policy.shard(world.mesh("cpu", hybrid=False))
    adamw = partial(AdamW(weight_decay=0.01).build, learning_rate=1e-3)
    trainer = Trainer(policy, Sft(), optimizer=adamw, learning_rate=lambda step: 1e-3 / (step + 1), seed=3, world=world)
    return trainer, Feed(corpus, Sft(), 100, True, CPU, world), Plan(corpus.lengths, 5, examples_per_step=8, epochs=None, steps=STEPS)


def set_out(world: World, weights: Path, folder: Path) -> None:
    """Take two steps of each journey, and save."""
    for journey in JOURNEYS:
        trainer, feed, plan = trainer_of(journey, world, weights)
        for number in (0, 1):
            trainer.step(feed.step(plan.step(number)))
        with Checkpoints(folder / str(journey) / str(world.size), world=world).saving() as save:
            save(trainer.state())


def arrive(world: World, weights: Path, folder: Path) -> dict[str, Any]:
    """Take the third step of each, from wherever the first two were taken."""
    found = {}
    for journey in JOURNEYS:
        for place in sorted((folder / str(journey)).iterdir()):
            trainer, feed, plan = trainer_of(journey, world, weights)
            state, remarks = Checkpoints(place, world=world).newest()
            assert state is not None
            assert not remarks
            trainer.load_state(state)
            loss = float(trainer.step(feed.step(plan.step(2))).means["loss"])
            weights_now = {name: whole(p.detach()) for name, p in trainer.masters.optimized.items()}
            found[f"{journey} from {place.name}"] = {"loss": loss, "weights": weights_now}
    return found


def test_a_checkpoint_goes_on_on_any_number_of_ranks(weights: Path, tmp_path: Path) -> None:
    set_out(World(), weights, tmp_path / "saved")
    for size in (2, 4):
        spawn(set_out, size, tmp_path / f"out-{size}", weights, tmp_path / "saved")
    assert len(list((tmp_path / "saved/full-sharded/4/step-00000002").glob("state-*-of-00004.safetensors"))) == 4
    there = [arrive(World(), weights, tmp_path / "saved")]
    for size in (2, 4):
        there += spawn(arrive, size, tmp_path / f"there-{size}", weights, tmp_path / "saved")
    for journey in JOURNEYS:
        trainer, feed, plan = trainer_of(journey, World(), weights)
        losses = [float(trainer.step(feed.step(plan.step(number))).means["loss"]) for number in range(STEPS)]
        for found in there:
            for origin in ("1", "2", "4"):
                got = found[f"{journey} from {origin}"]
                assert got["loss"] == pytest.approx(losses[2], rel=TOLERANCE), (journey, origin)
                for name, parameter in trainer.masters.optimized.items():
                    assert float((got["weights"][name] - parameter.detach()).abs().max()) < TOLERANCE, (journey, origin, name)


def with_few_examples(world: World) -> list[float]:
    """Steps of fewer examples than there are ranks."""
    policy = TablePolicy(dtype=torch.float64)
    adamw = partial(AdamW().build, learning_rate=1e-2)
    trainer = Trainer(policy, Sft(), optimizer=adamw, learning_rate=lambda _: 1e-2, seed=0, world=world)
    feed = Feed(ListCorpus(random_trees(4, vocabulary=16)), Sft(), 40, True, CPU, world)
    return [float(trainer.step(feed.step([number])).means["loss"]) for number in range(4)]


def test_a_rank_without_examples_takes_part(tmp_path: Path) -> None:
    one, other = spawn(with_few_examples, 2, tmp_path)
    assert one == other == pytest.approx(with_few_examples(World()), rel=1e-12)


def waits(world: World) -> list[list[float]]:
    """Of three steps, with a clock that goes on by another number of seconds on every rank, each time that it is looked at."""
    policy = TablePolicy(dtype=torch.float64)
    adamw = partial(AdamW().build, learning_rate=1e-2)
    trainer = Trainer(policy, Sft(), optimizer=adamw, learning_rate=lambda _: 1e-2, seed=0, world=world)
    feed = Feed(ListCorpus(random_trees(4, vocabulary=16)), Sft(), 40, True, CPU, world)
    with patch("zephyr_kit.waits.time.perf_counter", itertools.count(step=world.rank + 1).__next__):
        totals = [trainer.step(feed.step([number])) for number in range(3)]
    return [[float(seconds) for seconds in each.waits] for each in totals]


def test_every_rank_tells_what_it_waited_where_ranks_first_meet_and_one_alone_nothing(tmp_path: Path) -> None:
    # Twice a step: where they agree that memory sufficed, and in the first message of their devices.
    assert spawn(waits, 2, tmp_path) == [[[2.0, 4.0]] * 3] * 2
    assert waits(World()) == [[]] * 3


def on_a_quantised_base(world: World, weights: Path) -> dict[str, Any]:
    """SFT and DPO of an adapter on 4 bits, in float32: losses, and how much of the model this rank holds."""
    found: dict[str, Any] = {}
    for name in ("sft", "dpo"):
        objective = OBJECTIVES[name]
        policy = backend(weights, lora=Lora(rank=4, alpha=8), quantize=Quantize()).load(CPU, start=Start(seed=1), train=True)
        if objective.needs_reference:
            policy.keep_reference()
        if world.size > 1:
            policy.shard(world.mesh("cpu", hybrid=False))
        corpus = ListCorpus(random_trees(24, completions=objective.completions, longest=20))
        adamw = partial(AdamW().build, learning_rate=1e-2)
        trainer = Trainer(policy, objective, optimizer=adamw, learning_rate=lambda _: 1e-2, seed=3, world=world)
        feed = Feed(corpus, objective, 100, True, CPU, world)
        plan = Plan(corpus.lengths, 5, examples_per_step=8, epochs=None, steps=STEPS)
        found[name] = [float(trainer.step(feed.step(plan.step(number))).means["loss"]) for number in range(STEPS)]
        found["bytes"] = sum(nbytes(p) for p in policy.module.parameters() if not p.requires_grad)
    return found


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide enough for blocks of 64 weights."""
    return write_model(tmp_path_factory.mktemp("wide"), hidden_size=64, intermediate_size=128, head_dim=16)


def test_an_adapter_on_a_4_bit_base_that_is_shared_out(wide: Path, tmp_path: Path) -> None:
    alone, ranks = on_a_quantised_base(World(), wide), spawn(on_a_quantised_base, 2, tmp_path, wide)
    for found in ranks:
        for name in ("sft", "dpo"):
            assert found[name] == pytest.approx(alone[name], rel=1e-6)
            assert len(set(found[name])) == STEPS, "it learns"
        assert found["bytes"] == pytest.approx(alone["bytes"] / 2, rel=0.01)


def test_an_8_bit_base_is_not_shared_out(wide: Path) -> None:
    policy = backend(wide, lora=Lora(rank=4), quantize=Quantize(bits=8)).load(CPU, start=Start(), train=True)
    told = r"an 8-bit base cannot be shared out.*`train.sharding` = \"replicated\""
    with pytest.raises(ZkitError, match=told), pretended_mesh(2) as mesh:
        policy.shard(mesh)


def words(world: World) -> dict[str, Any]:
    with world.leader_first():
        pass
    told = world.word({"from": world.rank} if world.leads else None)
    gathered = world.gather(world.rank + 1)
    return {"told": told["from"], "gathered": gathered, "highest": world.highest(7 * world.rank), "again": world.word(5)}


def test_ranks_hear_the_leader_and_each_other(tmp_path: Path) -> None:
    assert spawn(words, 2, tmp_path) == [{"told": 0, "gathered": [1, 2], "highest": 7, "again": 5}] * 2
    assert words(World()) == {"told": 0, "gathered": [1], "highest": 0, "again": 5}


def test_a_rank_that_has_ended_is_not_waited_for_but_heard(tmp_path: Path) -> None:
    signs = Signs(tmp_path, 1)
    signs.broken.touch()
    world = World(1, 2, store=TCPStore("localhost", 0, is_master=True, wait_for_workers=False), heart=Heart(signs))
    world.store.set("0", '"before its end"')
    assert world.word() == "before its end"
    with pytest.raises(RuntimeError, match="a rank has ended before it said"):
        world.gather("to nobody")
