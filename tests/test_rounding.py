"""bfloat16 weights that are trained without float32 copies: what is lost to rounding is not lost on average."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import spawn
from hypothesis import given, settings
from hypothesis import strategies as st
from policies import backend
from tiny import ListCorpus, TablePolicy, random_trees, write_model
from torch import Tensor, nn
from zkit_mistral.backend import Lora
from zkit_optimizers.adamw import AdamW, AdamW8bit, PagedAdamW8bit, PagedAdamW32bit
from zkit_optimizers.rounding import RoundedAdamW, round_into, widened
from zkit_sft.objective import Sft

from zephyr_kit import ZkitError
from zephyr_kit.checkpoint import Checkpoints, read
from zephyr_kit.engine import Trainer
from zephyr_kit.feed import Feed, StepWork
from zephyr_kit.protocols import Start, updates_bfloat16
from zephyr_kit.world import World

CPU = torch.device("cpu")
DRAWS = 4000
ROUNDED = [kind(stochastic_rounding=True) for kind in (AdamW, AdamW8bit, PagedAdamW8bit, PagedAdamW32bit)]


def name_of(factory: Any) -> str:
    return type(factory).__name__


def rounded(full: Tensor) -> Tensor:
    short = torch.empty_like(full, dtype=torch.bfloat16)
    round_into(short, full.clone())
    return short


def neighbours(full: Tensor) -> tuple[Tensor, Tensor]:
    """The bfloat16 numbers towards zero and away from it; both itself, where it is one."""
    bits = full.view(torch.int32)
    inner = bits & -(1 << 16)
    outer = torch.where(bits == inner, inner, inner + (1 << 16))
    return inner.view(torch.float32), outer.view(torch.float32)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-(2.0**120), 2.0**120, width=32), min_size=1, max_size=20), st.integers(0, 2**32))
def test_the_result_is_one_of_the_two_neighbours(values: list[float], seed: int) -> None:
    torch.manual_seed(seed)
    full = torch.tensor(values)
    inner, outer = neighbours(full)
    result = rounded(full).float()
    assert ((result == inner) | (result == outer)).all()


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e20])
def test_the_mean_of_many_roundings_is_what_was_rounded(scale: float) -> None:
    torch.manual_seed(0)
    full = torch.randn(64) * scale
    inner, outer = (each.double() for each in neighbours(full))
    share = (full.double() - inner) / (outer - inner)
    outward = sum((rounded(full).double() == outer).double() for _ in range(DRAWS)) / DRAWS
    assert isinstance(outward, Tensor)
    deviation = (share * (1 - share) / DRAWS).sqrt()
    assert ((outward - share).abs() <= 5 * deviation + 1e-12).all()
    assert abs(float((outward - share).mean())) < 3 * float(deviation.square().sum().sqrt()) / len(full), "nor does it lean to a side"


def test_what_bfloat16_can_say_stays() -> None:
    """So that an update that is skipped changes nothing; and what is no number stays none."""
    every = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(torch.bfloat16)
    result = rounded(every.float())
    number = ~every.isnan()
    assert torch.equal(result[number].view(torch.int16), every[number].view(torch.int16))
    assert result[~number].isnan().all()


def test_what_is_no_number_stays_none() -> None:
    """Also a GPU's, all of whose lower bits are set: a carry would make a zero of it."""
    full = torch.tensor([0x7FFFFFFF, -1, 0x7F800000, -0x800000], dtype=torch.int32).view(torch.float32)
    short = torch.zeros(4, dtype=torch.bfloat16)
    round_into(short, full)
    assert short[:2].isnan().all()
    assert short[2:].tolist() == [torch.inf, -torch.inf]


def test_chunks_are_all_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zkit_optimizers.rounding.CHUNK", 7)
    full = torch.randn(5, 6)
    inner, outer = neighbours(full)
    result = rounded(full).float()
    assert ((result == inner) | (result == outer)).all()


def test_a_parameter_is_short_again_whatever_happens() -> None:
    parameter = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))

    def fail() -> None:
        with widened(parameter):
            assert parameter.dtype == torch.float32
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert parameter.dtype == torch.bfloat16


def trainer_of(policy: Any, factory: AdamW, *, rate: float = 1e-2, seed: int = 0, world: World | None = None) -> Trainer:
    build = partial(factory.build, learning_rate=rate)
    short = updates_bfloat16(factory)
    return Trainer(policy, Sft(), optimizer=build, learning_rate=lambda _: rate, seed=seed, world=world, updates_bfloat16=short)


def work_of(*, seed: int = 0, capacity: int = 40) -> StepWork:
    corpus = ListCorpus(random_trees(8, seed=seed, vocabulary=16))
    return Feed(corpus, Sft(), capacity, True, CPU, World()).step(range(8))  # type: ignore[arg-type]


def short_policy(vocabulary: int = 96) -> TablePolicy:
    return TablePolicy(vocabulary=vocabulary, dtype=torch.bfloat16)


@pytest.mark.parametrize("factory", ROUNDED, ids=name_of)
def test_there_is_no_copy_and_gradients_add_up_in_float32(factory: AdamW) -> None:
    policy, copies = short_policy(16), short_policy(16)
    trainer, full = trainer_of(policy, factory), trainer_of(copies, AdamW())
    assert trainer.masters.optimized["logits_VV"] is policy.module.logits_VV
    work = work_of(capacity=20)
    assert len(work.works) > 1
    for each in (trainer, full):
        each._summed(work)
    gradient = policy.module.logits_VV.grad
    assert gradient is not None
    assert gradient.dtype == torch.float32
    assert torch.equal(gradient, full.masters.optimized["logits_VV"].grad)  # type: ignore[arg-type]


@pytest.mark.parametrize("factory", ROUNDED, ids=name_of)
def test_a_step_is_that_of_float32_weights_but_for_the_rounding(factory: AdamW) -> None:
    """After one, each weight is one of the two neighbours of what it would be with a copy."""
    policy, copies = short_policy(), short_policy()
    trainer, full = trainer_of(policy, factory), trainer_of(copies, replace(factory, stochastic_rounding=False))
    for each in (trainer, full):
        each.step(work_of())
    inner, outer = neighbours(full.masters.optimized["logits_VV"].detach())
    result = policy.module.logits_VV.detach()
    assert result.dtype == torch.bfloat16
    assert ((result.float() == inner) | (result.float() == outer)).all()
    for one, other in zip(_state(trainer), _state(full), strict=True):
        assert torch.equal(one, other), "what is remembered of the gradients is the same"


def test_weights_move_at_a_rate_that_rounding_to_the_nearest_would_swallow() -> None:
    """In 300 steps of 5e-7 a weight goes 1.5e-4: far less than half a step of most of them."""
    policy = short_policy(16)
    before = policy.module.logits_VV.detach().clone().float()
    trainer, full = trainer_of(policy, AdamW(stochastic_rounding=True), rate=5e-7), trainer_of(short_policy(16), AdamW(), rate=5e-7)
    for _ in range(300):
        trainer.step(work_of())
        full.step(work_of())
    moved = policy.module.logits_VV.detach().float() - before
    wanted = full.masters.optimized["logits_VV"].detach() - before
    inner, outer = neighbours(before + wanted)
    steps = (outer - inner).abs().clamp(min=2**-30)
    large = (before.abs() > 0.1) & (wanted != 0)
    assert (wanted[large].abs() < steps[large] / 2).all(), "each is too small by itself"
    # Of so many weights as many have moved as the sum of what they should have moved says, give or take what chance does.
    share = float((wanted[large] / steps[large]).abs().sum())
    assert share > 4
    assert abs(float((moved[large] / steps[large]).abs().sum()) - share) < 5 * share**0.5 + 1
    assert trainer.has_moved()


def test_learning_is_that_of_float32_copies() -> None:
    losses = {}
    for factory in (AdamW(), AdamW(stochastic_rounding=True), AdamW8bit(stochastic_rounding=True)):
        trainer = trainer_of(short_policy(), factory, rate=2e-2)
        losses[repr(factory)] = [float(trainer.step(work_of(seed=number % 4)).means["loss"]) for number in range(120)]
    full, *others = losses.values()
    assert full[-1] < 0.7 * full[0]
    for each in others:
        assert each[-1] == pytest.approx(full[-1], rel=0.02)


@pytest.mark.parametrize("factory", ROUNDED, ids=name_of)
def test_a_run_that_is_resumed_goes_on_to_the_bit(tmp_path: Path, factory: AdamW) -> None:
    straight, first = (trainer_of(short_policy(), factory) for _ in range(2))
    for number in range(3):
        straight.step(work_of(seed=number))
        first.step(work_of(seed=number))
    state = read(Checkpoints(tmp_path).save(first.state()))
    assert state.tensors["trained/logits_VV"].dtype == torch.bfloat16
    assert {tensor.dtype for name, tensor in state.tensors.items() if "exp_avg" in name} <= {torch.float32}
    again = trainer_of(short_policy(), factory)
    again.load_state(state)
    torch.rand(5)
    for number in range(3, 6):
        straight.step(work_of(seed=number))
        again.step(work_of(seed=number))
    for one, other in zip([*straight.parameters, *_state(straight)], [*again.parameters, *_state(again)], strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def test_another_seed_rounds_otherwise() -> None:
    policies = [short_policy() for _ in range(3)]
    for policy, seed in zip(policies, (0, 0, 1), strict=True):
        trainer_of(policy, AdamW(stochastic_rounding=True), seed=seed, rate=1e-4).step(work_of())
    one, same, other = (policy.module.logits_VV for policy in policies)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("factory", ROUNDED, ids=name_of)
def test_a_gradient_that_is_not_finite_changes_nothing(factory: AdamW) -> None:
    policy = short_policy()
    trainer = trainer_of(policy, factory)
    trainer.step(work_of())
    before = {name: value.clone() for name, value in trainer.state().tensors.items()}
    handle = policy.module.logits_VV.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor([3]), torch.nan))
    trainer.step(work_of(seed=1))
    handle.remove()
    after = trainer.state().tensors
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def on_ranks(world: World, weights: Path, lora: bool) -> dict[str, Any]:
    """Weights that every rank has whole, after three steps."""
    policy = backend(weights, dtype="bfloat16", lora=Lora(rank=4) if lora else None).load(CPU, start=Start(seed=1), train=True)
    trainer = trainer_of(policy, AdamW(stochastic_rounding=True), seed=3, world=world)
    feed = Feed(ListCorpus(random_trees(24, longest=20)), Sft(), 100, True, CPU, world)
    losses = [float(trainer.step(feed.step(range(8 * number, 8 * number + 8))).means["loss"]) for number in range(3)]
    return {"losses": losses, "weights": {name: p.detach() for name, p in trainer.masters.optimized.items()}}


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_ranks_round_alike(tmp_path: Path, lora: bool) -> None:
    """And as one that is alone would, but where sums in another order tip a rounding."""
    weights = write_model(tmp_path / "model", dtype=torch.bfloat16)
    one, other = spawn(on_ranks, 2, tmp_path / "ranks", weights, lora)
    alone = on_ranks(World(), weights, lora)
    assert one["losses"] == pytest.approx(alone["losses"], rel=0.02)
    for name, value in one["weights"].items():
        assert torch.equal(value, other["weights"][name])
        assert value.dtype == torch.bfloat16
    same = [float((one["weights"][name] == value).double().mean()) for name, value in alone["weights"].items()]
    assert sum(same) / len(same) > 0.8


def test_what_is_trained_in_another_type_is_refused() -> None:
    with pytest.raises(ZkitError, match=r"stochastic_rounding = true rounds .* bfloat16, but here that is float32"):
        trainer_of(TablePolicy(), AdamW(stochastic_rounding=True))


def test_float32_parameters_beside_are_updated_as_ever() -> None:
    full, short = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    plain = nn.Parameter(torch.ones(4))
    ours = AdamW(stochastic_rounding=True).build([full, short], learning_rate=1e-2)
    theirs = torch.optim.AdamW([plain], lr=1e-2, weight_decay=0.0, fused=True)
    assert isinstance(ours, RoundedAdamW)
    for _ in range(3):
        for each in (full, plain):
            each.grad = torch.full((4,), 0.3)
        ours.step()
        theirs.step()
    assert torch.equal(full, plain)


def test_what_is_offered_instead_is_an_optimizer_of_the_preset() -> None:
    offers = AdamW(weight_decay=0.1).leaner()
    assert [offer.value for offer in offers] == ['"adamw_8bit"', '{ use = "adamw_8bit", stochastic_rounding = true }']
    assert offers[-1].offer == AdamW8bit(weight_decay=0.1, stochastic_rounding=True)
    assert AdamW(stochastic_rounding=True).leaner()[0].offer == AdamW8bit(stochastic_rounding=True)
    assert AdamW8bit(stochastic_rounding=True).leaner() == PagedAdamW8bit(stochastic_rounding=True).leaner() == []


def _state(trainer: Trainer) -> list[Tensor]:
    return [value for state in trainer.optimizer.state.values() for _, value in sorted(state.items()) if isinstance(value, Tensor)]
