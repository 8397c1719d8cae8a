"""The step: rate, clipping, master copies, seeds, reports, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import ListCorpus, TablePolicy, random_trees
from zkit_optimizers.adamw import AdamW, AdamW8bit, PagedAdamW8bit
from zkit_preference.dpo import Dpo
from zkit_sft.objective import Sft

from zephyr_kit.batch import lay_out
from zephyr_kit.checkpoint import Checkpoints, read
from zephyr_kit.engine import NumbersError, Totals, Trainer, TrainingError, seed_everything
from zephyr_kit.feed import Feed, StepWork, Work, ahead
from zephyr_kit.masters import Masters
from zephyr_kit.meter import Meter
from zephyr_kit.metrics import MetricLog
from zephyr_kit.plan import Plan
from zephyr_kit.schedule import Schedule, learning_rate
from zephyr_kit.world import World

CPU = torch.device("cpu")


def trainer_of(
    policy: TablePolicy, *, rate: float = 1e-2, clip: float = 1.0, seed: int = 0, objective: Any = None, factory: AdamW | None = None
) -> Trainer:
    adamw = partial((factory or AdamW()).build, learning_rate=rate)
    return Trainer(policy, objective or Sft(), optimizer=adamw, learning_rate=lambda _: rate, seed=seed, clip=clip)


def work_of(*, completions: int = 1, seed: int = 0, capacity: int = 40, objective: Any = None) -> StepWork:
    corpus = ListCorpus(random_trees(8, completions=completions, seed=seed, vocabulary=16))
    feed = Feed(corpus, objective or Sft(), capacity, True, CPU, World())  # type: ignore[arg-type]
    return feed.step(range(8))


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(["constant", "cosine", "linear"]),
    st.sampled_from([0.0, 0.03, 0.1, 0.15, 0.5, 1.0]) | st.floats(0, 1),
    st.integers(1, 200),
)
def test_the_rate_is_that_of_transformers(schedule: Schedule, warmup: float, num_steps: int) -> None:
    from transformers import TrainingArguments, get_scheduler

    arguments = TrainingArguments(output_dir="unused", warmup_steps=warmup, use_cpu=True)
    num_warmup = arguments.get_warmup_steps(num_steps) if warmup < 1 else num_steps
    name = "constant_with_warmup" if schedule == "constant" else schedule
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=3e-4)
    scheduler = get_scheduler(name, optimizer, num_warmup_steps=num_warmup, num_training_steps=num_steps)
    for step in range(num_steps):
        ours = learning_rate(step, peak=3e-4, schedule=schedule, warmup=warmup, num_steps=num_steps)
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12, abs=1e-18)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("clip", [0.0, 0.1, 1.0, 1e6])
def test_a_step_is_a_plain_loop_with_clipping(clip: float) -> None:
    policy, plain = TablePolicy(dtype=torch.float64), TablePolicy(dtype=torch.float64)
    trainer = trainer_of(policy, clip=clip)
    optimizer = torch.optim.AdamW([plain.module.logits_VV], lr=1e-2, weight_decay=0.0)
    for number in range(5):
        trees = random_trees(8, seed=number, vocabulary=16)
        totals = trainer.step(work_of(seed=number))
        loss = -plain.score(lay_out(trees)).mean()
        loss.backward()
        norm = plain.module.logits_VV.grad.norm()  # type: ignore[union-attr]
        if clip and norm > clip:
            plain.module.logits_VV.grad *= clip / (norm + 1e-6)
        optimizer.step()
        optimizer.zero_grad()
        assert totals.means["loss"].item() == pytest.approx(loss.item(), rel=1e-12)
        assert totals.gradient_norm.item() == pytest.approx(norm.item(), rel=1e-12), "the norm before clipping"
    torch.testing.assert_close(policy.module.logits_VV, plain.module.logits_VV, rtol=1e-12, atol=1e-14)


def test_short_weights_move_at_a_rate_that_rounding_would_swallow() -> None:
    policy = TablePolicy(dtype=torch.bfloat16)
    before = policy.module.logits_VV.detach().clone()
    bare = torch.nn.Parameter(before.clone())
    bare_optimizer = torch.optim.AdamW([bare], lr=5e-7, weight_decay=0.0)
    trainer = trainer_of(policy, rate=5e-7)
    for _ in range(300):
        trainer.step(work_of())
        bare.grad = torch.ones_like(bare)
        bare_optimizer.step()
    large = before.abs() > 1e-3
    assert torch.equal(bare[large], before[large]), "without a copy nothing would move"
    moved = (trainer.masters.optimized["logits_VV"] - before.float()).abs().max()
    assert 1e-5 < moved < 2e-4
    assert trainer.masters.optimized["logits_VV"].dtype == torch.float32


def test_short_weights_learn_as_adamw_on_float32_copies() -> None:
    policy, copies = TablePolicy(dtype=torch.bfloat16), TablePolicy(dtype=torch.bfloat16)
    master = torch.nn.Parameter(copies.module.logits_VV.detach().float())
    optimizer = torch.optim.AdamW([master], lr=1e-3, weight_decay=0.0)
    trainer = trainer_of(policy, rate=1e-3, clip=0.0)
    for number in range(20):
        work = work_of(seed=number)
        trainer.step(work)
        master.grad = torch.zeros_like(master)
        for item in work.works:
            (-copies.score(item.batch).sum() / work.num_units).backward()
            master.grad += copies.module.logits_VV.grad.float()  # type: ignore[union-attr]
            copies.module.logits_VV.grad = None
        optimizer.step()
        copies.module.logits_VV.data.copy_(master.data)
        assert torch.equal(policy.module.logits_VV, copies.module.logits_VV)
    torch.testing.assert_close(trainer.masters.optimized["logits_VV"], master, rtol=1e-6, atol=1e-8)
    assert policy.module.logits_VV.dtype == torch.bfloat16
    assert policy.module.logits_VV.grad is None


def test_masters_leave_long_types_and_frozen_ones_alone() -> None:
    policy = TablePolicy()
    masters = Masters.of(policy.module.named_parameters())
    assert masters.optimized["logits_VV"] is policy.module.logits_VV
    assert "frozen" not in masters.optimized


def test_a_checkpoint_holds_the_copies_not_the_rounded_weights(tmp_path: Path) -> None:
    policy = TablePolicy(dtype=torch.bfloat16)
    trainer = trainer_of(policy, rate=5e-7)
    for number in range(3):
        trainer.step(work_of(seed=number))
    state = read(Checkpoints(tmp_path).save(trainer.state()))
    assert state.tensors["trained/logits_VV"].dtype == torch.float32
    other = trainer_of(TablePolicy(dtype=torch.bfloat16), rate=5e-7)
    other.load_state(state)
    for number in range(3, 6):
        trainer.step(work_of(seed=number))
        other.step(work_of(seed=number))
    assert torch.equal(trainer.masters.optimized["logits_VV"], other.masters.optimized["logits_VV"])


def test_no_trainable_parameter_is_refused() -> None:
    policy = TablePolicy()
    policy.module.requires_grad_(False)
    with pytest.raises(TrainingError, match="no trainable parameter"):
        trainer_of(policy)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("factory", [AdamW(), AdamW8bit(), PagedAdamW8bit()], ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_gradient_that_is_not_finite_changes_nothing(poison: float, factory: AdamW, dtype: torch.dtype) -> None:
    """Neither weights nor what the optimizer remembers; the next step is that of a run without it."""
    policy, plain = TablePolicy(vocabulary=96, dtype=dtype), TablePolicy(vocabulary=96, dtype=dtype)
    trainers = [trainer_of(each, factory=factory) for each in (policy, plain)]
    for each in trainers:
        each.step(work_of())
    before = {name: value.clone() for name, value in trainers[0].state().tensors.items()}
    handle = policy.module.logits_VV.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor([3]), poison))
    totals = trainers[0].step(work_of(seed=1))
    handle.remove()
    assert math.isfinite(totals.means["loss"])
    assert not math.isfinite(totals.gradient_norm)
    after = trainers[0].state()
    assert (after.step, after.tensors.keys()) == (2, before.keys())
    assert all(torch.equal(after.tensors[name], value) for name, value in before.items())
    if type(factory) is AdamW:  # bitsandbytes counts the step, as its bias correction hardly feels
        for each in trainers:
            each.step(work_of(seed=2))
        assert torch.equal(policy.module.logits_VV, plain.module.logits_VV)


def test_an_optimizer_that_cannot_look_on_the_device_is_not_asked_to_step() -> None:
    policy = TablePolicy()
    trainer = Trainer(policy, Sft(), optimizer=lambda p: torch.optim.SGD(p, 0.1), learning_rate=lambda _: 0.1, seed=0)
    policy.module.logits_VV.data[:, 3] = math.nan
    before = policy.module.logits_VV.detach().clone()
    trainer.step(work_of())
    assert torch.equal(policy.module.logits_VV.nan_to_num(9), before.nan_to_num(9))


def test_weights_that_stand_still_are_found_out() -> None:
    moving, still = trainer_of(TablePolicy()), trainer_of(TablePolicy(), rate=1e-30)
    for each in (moving, still):
        each.step(work_of())
    assert moving.has_moved()
    assert not still.has_moved()


def test_a_state_is_kept_only_while_it_is_finite(tmp_path: Path) -> None:
    """What the loop of a stage does: reports are flushed before a checkpoint is kept."""
    policy = TablePolicy()
    trainer = trainer_of(policy)
    checkpoints, log, meter = Checkpoints(tmp_path / "checkpoints"), MetricLog(tmp_path / "metrics.jsonl"), Meter(num_steps=9, epoch=float)

    def run() -> None:
        for number in range(9):
            if number == 4:
                policy.module.logits_VV.data[:, 3] = math.nan
            log.append(report.facts() for report in meter.add(trainer.step(work_of(seed=number))))
            if trainer.num_steps_taken % 3 == 0:
                log.append(report.facts() for report in meter.flush())
                checkpoints.save(trainer.state())

    with pytest.raises(NumbersError, match="step 6: trained/logits_VV is no longer finite"):
        run()
    state, remarks = checkpoints.newest()
    assert state is not None
    assert (state.step, remarks) == (3, [])
    assert all(torch.isfinite(tensor).all() for tensor in state.tensors.values())
    assert [line["loss"] for line in log.lines()][4:] == ["NaN", "NaN"]
    assert [line.get("skipped") for line in log.lines()] == [None] * 4 + [1, 2]


def test_a_state_that_is_no_number_is_not_handed_out() -> None:
    policy = TablePolicy()
    trainer = trainer_of(policy, rate=1e39)
    trainer.step(work_of())
    with pytest.raises(NumbersError, match="step 1: trained/logits_VV is no longer finite"):
        trainer.state()


def test_seeds_do_not_depend_on_what_was_drawn_before() -> None:
    def losses(*, disturb: bool, seed: int = 0) -> list[float]:
        trainer = trainer_of(TablePolicy(dropout=0.3), seed=seed)
        found = []
        for number in range(4):
            if disturb:
                torch.rand(number + 1)
            found.append(trainer.step(work_of(seed=number)).means["loss"].item())
        return found

    assert losses(disturb=False) == losses(disturb=True)
    assert losses(disturb=False) != losses(disturb=False, seed=1)


def test_seeds_of_different_numbers_differ() -> None:
    drawn = set()
    for step in range(20):
        for rank in range(5):
            seed_everything(42, step, rank)
            drawn.add(torch.rand(1).item())
    assert len(drawn) == 100


def test_evaluation_learns_nothing_and_drops_nothing_out() -> None:
    policy = TablePolicy(dropout=0.5)
    trainer = trainer_of(policy)
    before = policy.module.logits_VV.detach().clone()
    means = trainer.evaluate(iter([work_of(seed=1), work_of(seed=2)]))
    assert means == trainer.evaluate(iter([work_of(seed=1), work_of(seed=2)]))
    assert torch.equal(policy.module.logits_VV, before)
    assert policy.module.logits_VV.grad is None
    whole = lay_out([*random_trees(8, seed=1, vocabulary=16), *random_trees(8, seed=2, vocabulary=16)])
    policy.module.eval()
    assert means["loss"] == pytest.approx(-policy.score(whole).mean().item(), rel=1e-6)


def test_metrics_are_means_over_the_whole_step() -> None:
    trainer = trainer_of(TablePolicy(dtype=torch.float64), objective=Dpo())
    work = work_of(completions=2, objective=Dpo())
    assert len(work.works) > 1
    assert work.num_units == 8
    means = trainer.step(work).means
    assert means["loss"].item() == pytest.approx(math.log(2))
    assert means["reward/margin"].item() == 0
    accuracy = trainer.step(work).means["reward/accuracy"].item() * 8
    assert 0 < accuracy == round(accuracy) <= 8


def totals(step: int, loss: float = 1.0) -> Totals:
    return Totals(step, {"loss": torch.tensor(loss), "reward/margin": torch.tensor(step / 2)}, torch.tensor(2.0), 1e-3, 100, 50)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.booleans(), min_size=1, max_size=30), st.sampled_from([0.0, 1e9]))
def test_the_meter_reports_each_step_once_and_in_order(flushes: Sequence[bool], every: float) -> None:
    meter = Meter(num_steps=len(flushes), epoch=lambda number: (number + 1) / 10, every=every)
    reports = []
    for number, flush in enumerate(flushes):
        reports += meter.add(totals(number + 1))
        reports += meter.flush() if flush else []
    reports += meter.flush()
    assert [report.step for report in reports] == list(range(1, len(flushes) + 1))
    assert [report.metrics["reward/margin"] for report in reports] == [report.step / 2 for report in reports]
    assert [report.epoch for report in reports] == [report.step / 10 for report in reports]
    assert meter.flush() == []


def test_waits_are_means_over_the_steps_that_are_told_together() -> None:
    meter = Meter(num_steps=3, epoch=float, every=math.inf)
    for step, waits in ((1, (0.0, 0.5)), (2, (0.25, 0.0))):
        meter.add(replace(totals(step), waits=list(torch.tensor(waits, dtype=torch.float64))))
    reports = meter.flush()
    assert [report.facts()["wait_seconds"] for report in reports] == [[0.125, 0.25]] * 2
    assert replace(reports[0], tokens_per_second=100.0).wait_share == 0.1875
    assert replace(reports[0], wait_seconds=()).wait_share == 0


def test_a_report_is_one_line_of_json() -> None:
    meter = Meter(num_steps=3, epoch=float)
    meter.add(totals(1))
    (report,) = meter.flush()
    facts = json.loads(json.dumps(report.facts()))
    counts = {"num_tokens", "num_targets", "tokens_per_second"}
    assert set(facts) == {"step", "epoch", "loss", "reward/margin", "gradient_norm", "learning_rate", *counts}


def test_a_metric_log_forgets_what_is_trained_again(tmp_path: Path) -> None:
    log = MetricLog(tmp_path / "metrics.jsonl")
    log.rewind(0)
    log.append({"step": step, "loss": 1 / step} for step in range(1, 6))
    log.append([{"step": 4, "held_out/loss": 0.5}])
    with log.path.open("a") as file:
        file.write('{"step": 6, "lo')  # a killed process
    log.rewind(4)
    log.append([{"step": 5, "loss": 7.0}])
    assert [line["step"] for line in log.lines()] == [1, 2, 3, 4, 4, 5]


def test_the_feed_raises_where_its_items_are_used() -> None:
    def items() -> Any:
        yield 1
        raise OSError("disk gone")

    found = []
    with pytest.raises(OSError, match="disk gone"):
        found.extend(ahead(items()))
    feed = ahead(iter(range(1000)))
    assert next(feed) == 0
    feed.close()  # type: ignore[attr-defined]


def test_the_feed_keeps_order_and_counts_units() -> None:
    corpus = ListCorpus(random_trees(10, completions=2, vocabulary=16))
    feed = Feed(corpus, Dpo(), 50, True, CPU, World())  # type: ignore[arg-type]
    plan = Plan(corpus.lengths, 0, examples_per_step=4, epochs=2)
    works = list(feed.steps(plan, first=2))
    assert len(works) == plan.num_steps - 2
    for number, work in enumerate(works, 2):
        members = plan.step(number)
        assert work.num_units == len(members)
        assert work.num_tokens == corpus.lengths[members].sum()
        assert work.num_targets == corpus.num_targets[members].sum()


def test_work_moves_whole() -> None:
    batch = lay_out(random_trees(2, vocabulary=16))
    moved = Work(batch, torch.zeros(len(batch.target_M))).to(torch.device("meta"))
    assert moved.batch.tokens_T.is_meta
    assert moved.reference_M is not None
    assert moved.reference_M.is_meta
    assert moved.batch.lengths == batch.lengths


@pytest.mark.parametrize("capacity", [1, 40, 10_000])
def test_micro_batches_are_schedule_not_mathematics(capacity: int) -> None:
    policy, whole = TablePolicy(dtype=torch.float64), TablePolicy(dtype=torch.float64)
    trainer_of(policy).step(work_of(capacity=capacity))
    trainer_of(whole).step(work_of(capacity=200))
    torch.testing.assert_close(policy.module.logits_VV, whole.module.logits_VV, rtol=1e-12, atol=1e-14)
