"""The loop: memory that does not suffice, skipped steps, and when a checkpoint is kept."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import spawn
from tiny import ListCorpus, TablePolicy, random_trees
from toys import Listener
from zkit_optimizers.adamw import AdamW
from zkit_sft.objective import Sft

from zephyr_kit import engine
from zephyr_kit.checkpoint import Checkpoints, State
from zephyr_kit.engine import LackError, NumbersError, Trainer, TrainingError
from zephyr_kit.exits import Exit
from zephyr_kit.feed import Feed
from zephyr_kit.heartbeat import Heart, Signs
from zephyr_kit.loop import Loop
from zephyr_kit.metrics import MetricLog
from zephyr_kit.observe import Run
from zephyr_kit.plan import Plan
from zephyr_kit.plugins import Plugins
from zephyr_kit.stages import Train
from zephyr_kit.stopping import Stop, Stopped
from zephyr_kit.world import World

CPU = torch.device("cpu")
STEPS = 8


class SmallPolicy(TablePolicy):
    """On a device that holds so many tokens."""

    def __init__(self, room: int) -> None:
        super().__init__(dtype=torch.float64)
        self.room = room

    def score(self, batch: Any) -> torch.Tensor:
        if len(batch.tokens_T) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB\nand more of it")
        return super().score(batch)


@dataclass(frozen=True)
class NamedCorpus(ListCorpus):
    @property
    def origins(self) -> list[str]:
        return [f"rows.jsonl:{number}" for number in range(1, len(self.trees) + 1)]


def loop_of(policy: TablePolicy, folder: Path, *, every: int = 2, capacity: int = 10_000, world: World = World()) -> Loop:  # noqa: B008  frozen
    corpus: Any = NamedCorpus(random_trees(16, vocabulary=16))
    train = Train(learning_rate=1e-2, steps=STEPS, examples_per_step=8, checkpoint_every=every, optimizer=AdamW())
    optimizer = partial(AdamW().build, learning_rate=1e-2)
    trainer = Trainer(policy, Sft(), optimizer=optimizer, learning_rate=lambda _: 1e-2, seed=0, world=world)
    feed = Feed(corpus, Sft(), capacity, True, CPU, world)
    checkpoints, log = Checkpoints(folder / "checkpoints", keep=100), MetricLog(folder / "metrics.jsonl")
    folder.mkdir(parents=True, exist_ok=True)
    about = Run("tiny", "sft", folder, STEPS)
    return Loop(
        about,
        train,
        trainer,
        train.plan(corpus.lengths, 0),
        feed,
        None,
        checkpoints,
        log,
        Plugins(discover=False),
        Listener(),
        Stop(),
    )


def kept(loop: Loop) -> list[int]:
    return sorted(int(place.name[5:]) for place in loop.checkpoints.folder.iterdir())


def test_where_memory_lacks_the_step_is_begun_anew_in_smaller_batches(tmp_path: Path) -> None:
    small, large = loop_of(SmallPolicy(40), tmp_path / "small"), loop_of(TablePolicy(dtype=torch.float64), tmp_path / "large")
    small.run()
    large.run()
    assert isinstance(small.narrator, Listener)
    assert len(small.narrator.lines) > 1
    told = "stages.sft, step 1: out of memory (CUDA out of memory. Tried to allocate 20.00 MiB); in batches of up to 5,000 tokens"
    assert small.narrator.lines[0].startswith(told)
    torch.testing.assert_close(small.trainer.parameters[0], large.trainer.parameters[0], rtol=1e-12, atol=1e-14)
    assert [line["loss"] for line in small.log.lines()] == pytest.approx([line["loss"] for line in large.log.lines()], rel=1e-12)


def test_the_state_is_copied_only_for_steps_that_follow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where memory is full of it, a copy as the run ends, or is told to stop, would end it without the checkpoint."""
    copied: list[bool] = []
    on_host = State.on_host

    def noted(state: State, **how: bool) -> State:
        copied.append(how["copied"])
        shared = on_host(state, **how).tensors
        assert all((tensor.data_ptr() == shared[name].data_ptr()) is not how["copied"] for name, tensor in state.tensors.items())
        return on_host(state, **how)

    monkeypatch.setattr(State, "on_host", noted)
    whole, stopped = (loop_of(TablePolicy(), tmp_path / name) for name in ("whole", "stopped"))
    whole.run()
    assert copied == [*[True] * (STEPS // 2 - 1), False]
    copied.clear()
    monkeypatch.setattr(stopped.stop, "requested", lambda: Exit.TERMINATED)
    with pytest.raises(Stopped):
        stopped.run()
    assert copied == [False]


def test_the_largest_batch_can_be_tried_before_the_first_step(tmp_path: Path) -> None:
    loop = loop_of(SmallPolicy(40), tmp_path)
    before = loop.trainer.parameters[0].detach().clone()
    feed = loop._try_largest(loop.feed)
    assert int(feed.lengths.max()) <= feed.capacity <= 10_000 // 2
    assert all(len(work.batch.tokens_T) <= 40 for number in range(STEPS) for work in feed.step(loop.plan.step(number)).works)
    assert torch.equal(loop.trainer.parameters[0], before)
    assert loop.trainer.parameters[0].grad is None
    assert loop.trainer.num_steps_taken == 0


def tried_on_ranks(world: World, folder: Path) -> int:
    """The batches that a rank begins with, where the second has little memory."""
    loop = loop_of(SmallPolicy(40 if world.rank else 10_000), folder / str(world.rank), world=world)
    return loop._try_largest(loop.feed).capacity


def test_where_memory_lacks_on_one_rank_all_try_smaller_batches(tmp_path: Path) -> None:
    alone = loop_of(SmallPolicy(40), tmp_path / "alone")
    assert spawn(tried_on_ranks, 2, tmp_path, tmp_path) == [alone._try_largest(alone.feed).capacity] * 2


def test_what_was_found_to_fit_holds_until_other_batches_are_asked_for(tmp_path: Path) -> None:
    """Ranks that share weights learn it from the start before."""
    loops = [loop_of(TablePolicy(), tmp_path, capacity=capacity) for capacity in (400, 400, 300)]

    def lacking(_: Any) -> None:
        raise LackError("step 1: out of memory", "no room")

    loops[0].trainer.step = lacking  # type: ignore[assignment,method-assign]
    with pytest.raises(LackError):
        loops[0].run()
    assert [loop._as_found_to_fit(loop.feed).capacity for loop in loops] == [200, 200, 300]


def test_an_example_that_does_not_fit_is_told(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"not even one example of 2\d tokens fits into memory"):
        loop_of(SmallPolicy(5), tmp_path).run()


@pytest.mark.parametrize("where", ["engine.sum_gradients", "trainer.optimizer.step"])
def test_memory_for_the_update_is_no_matter_of_batches(tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other ranks have summed by then, or weights were updated."""
    loop = loop_of(TablePolicy(), tmp_path)

    def lacking(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    place, name = where.rsplit(".", 1)
    monkeypatch.setattr({"engine": engine, "trainer.optimizer": loop.trainer.optimizer}[place], name, lacking)
    with pytest.raises(TrainingError, match="step 1: no memory for the update"):
        loop.run()


@pytest.mark.parametrize(("bad", "expected"), [((3,), [2, 5, 6, 8]), ((5, 6), [2, 4, 8]), ((7,), [2, 4, 6, 8])])
def test_no_checkpoint_is_kept_while_steps_are_skipped(tmp_path: Path, bad: tuple[int, ...], expected: list[int]) -> None:
    """One that falls due then is kept after the next step that is taken, or when there is none."""
    loop = loop_of(TablePolicy(), tmp_path)
    poison(loop.trainer, bad)
    loop.run()
    assert kept(loop) == expected
    skipped = [line for line in loop.log.lines() if "skipped" in line]
    assert [line["step"] - 1 for line in skipped] == list(bad)
    assert all(line["loss"] == "NaN" and len(line["rows"]) == 8 and line["rows"][0].startswith("rows.jsonl:") for line in skipped)


class Asked(Stop):
    """To stop after so many looks."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.looks = itertools.count(1)
        self.after = after

    def requested(self) -> Exit | None:
        return Exit.TERMINATED if next(self.looks) >= self.after else None


def test_three_skipped_in_a_row_stop_also_over_two_starts(tmp_path: Path) -> None:
    """A stop among them is saved as any other, and they count when it goes on."""
    first, later = (loop_of(TablePolicy(), tmp_path) for _ in range(2))
    poison(first.trainer, (3, 4))
    with pytest.raises(Stopped):
        replace(first, stop=Asked(5)).run()
    assert kept(first) == [2, 5]
    state, _ = later.checkpoints.newest()
    assert state is not None
    later.trainer.load_state(state)
    assert torch.equal(later.trainer.parameters[0], first.trainer.parameters[0])
    poison(later.trainer, (5,))
    with pytest.raises(NumbersError, match="step 6: 3 steps one after another"):
        later.run()
    assert kept(later) == [2, 5]


def test_weights_that_the_last_update_made_infinite_are_not_kept_as_the_result(tmp_path: Path) -> None:
    loop = loop_of(TablePolicy(), tmp_path)
    poison(loop.trainer, (7,))
    update = loop.trainer._update

    def updated(*given: Any) -> torch.Tensor:
        norm = update(*given)
        if loop.trainer.num_steps_taken == 6:
            loop.trainer.parameters[0].data[0, 0] = math.inf
        return norm

    loop.trainer._update = updated  # type: ignore[method-assign]
    with pytest.raises(NumbersError, match=r"step 8: trained/.* is no longer finite"):
        loop.run()
    assert kept(loop) == [2, 4, 6]


def poison(trainer: Trainer, steps: tuple[int, ...]) -> None:
    gradients = trainer._gradients

    def poisoned(*given: Any) -> Any:
        totals, lack = gradients(*given)
        return {name: value * math.nan if trainer.num_steps_taken in steps else value for name, value in totals.items()}, lack

    trainer._gradients = poisoned  # type: ignore[method-assign]


def test_a_plan_of_few_steps_is_looked_through(tmp_path: Path) -> None:
    """Not more steps than there are."""
    loop = loop_of(TablePolicy(), tmp_path)
    assert isinstance(loop.plan, Plan)
    assert loop._try_largest(loop.feed) is loop.feed


def test_a_metric_that_is_known_only_late_is_refused_at_the_first_step(tmp_path: Path) -> None:
    loop = loop_of(TablePolicy(dtype=torch.float64), tmp_path)
    loop = replace(loop, train=replace(loop.train, keep_best="lss"))
    with pytest.raises(TrainingError, match=r"^\[stages\.sft\] `train.keep_best` = \"lss\": there is no such metric; did you mean `loss`"):
        loop.run()


def told_by_ranks(world: World, folder: Path) -> tuple[int, str]:
    """How many steps whoever has started a rank hears of."""
    signs = Signs(folder, world.rank)
    loop_of(TablePolicy(dtype=torch.float64), folder / str(world.rank), world=replace(world, heart=Heart(signs))).run()
    return signs.step()


def test_every_rank_tells_of_its_steps_and_not_only_the_leader(tmp_path: Path) -> None:
    assert spawn(told_by_ranks, 2, tmp_path, tmp_path) == [(STEPS, "sft")] * 2
