"""The footprint counts what tensors hold, to the byte; a rehearsal is the step itself on tensors without data."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from zkit_optimizers.adamw import AdamW, AdamW8bit
from zkit_preference.dpo import Dpo
from zkit_preference.kto_pair import KtoPair
from zkit_sft.objective import Sft

from tests.tiny import Table, TablePolicy, random_trees
from zephyr_kit.footprint import ACTIVATIONS, GRADIENTS, HEAD, MASTERS, OPTIMIZER, REFERENCE, WEIGHTS, Footprint
from zephyr_kit.protocols import Skeleton, Start
from zephyr_kit.rehearsal import PlannedStep, rehearse

V = 16
MATRIX = V * V * 4


def test_a_toy_is_counted_to_the_byte():
    """y = relu(x W) W, 4 bytes each: what is alive at each moment is known by hand."""
    n, d = 32, 8
    with FakeTensorMode(), Footprint() as footprint:
        with footprint.counted_as(WEIGHTS):
            weight = torch.nn.Parameter(torch.empty(d, d))
        rows = torch.empty(n, d)
        assert footprint.now == {WEIGHTS: 4 * d * d, ACTIVATIONS: 4 * n * d}
        hidden = (rows @ weight).relu()
        assert footprint.peak[ACTIVATIONS] == 4 * 3 * n * d
        assert footprint.now[ACTIVATIONS] == 4 * 2 * n * d  # what relu was given is gone
        view = hidden[: n // 2].t()
        assert footprint.now[ACTIVATIONS] == 4 * 2 * n * d  # a view holds nothing of its own
        (hidden @ weight).sum().backward()
        footprint.move(weight.grad, GRADIENTS)
        assert footprint.now[GRADIENTS] == 4 * d * d
        del view, hidden, rows
        assert footprint.now[ACTIVATIONS] == 0
        # Two products forward, of n x d by d x d; two gradients for the second, one for the first.
        assert footprint.flops == 5 * 2 * n * d * d


def test_a_product_that_is_added_in_place_is_counted():
    """As the head adds up the gradient of its weights."""
    n, d = 32, 8
    with FakeTensorMode(), Footprint() as footprint:
        torch.zeros(d, d).addmm_(torch.empty(d, n), torch.empty(n, d), alpha=-1)
        assert footprint.flops == 2 * n * d * d


def test_what_has_the_vocabulary_for_an_axis_is_the_heads():
    with FakeTensorMode(), Footprint(vocabulary=V) as footprint:
        logits, hidden = torch.empty(3, V), torch.empty(3, V + 1)
        assert footprint.now == {HEAD: 4 * 3 * V, ACTIVATIONS: 4 * 3 * (V + 1)}
        del logits, hidden
        assert footprint.peak == {HEAD: 4 * 3 * V, ACTIVATIONS: 4 * 3 * (V + 1)}


@dataclass(frozen=True)
class Toy:
    """A backend whose model is one table of V x V numbers."""

    dtype: torch.dtype = torch.float32

    def skeleton(self, start: Start) -> Skeleton:
        policy = TablePolicy(vocabulary=V, dtype=self.dtype)
        policy._twin = policy.module
        policy.module.to_empty(device="meta")
        policy.keep_reference = lambda: setattr(policy, "_twin", _copy(policy.module))
        return Skeleton(policy, V)


class Multiplying(Toy):
    """One that multiplies its table by itself on the way, which is arithmetic that counts."""

    def skeleton(self, start: Start) -> Skeleton:
        found = super().skeleton(start)
        found.policy.module.register_forward_hook(lambda module, _, logp: logp + (module.logits_VV @ module.logits_VV).sum())
        return found


def _copy(module: Table) -> Table:
    import copy

    return copy.deepcopy(module)


def planned_step(**changes: object) -> PlannedStep:
    backend = changes.pop("backend", Toy())
    trees = tuple(random_trees(4, completions=2, vocabulary=V))
    return replace(PlannedStep(backend, Start(), Dpo(), AdamW(), trees), **changes)


def test_parts_of_a_step_are_what_they_must_be():
    held = rehearse(planned_step()).training
    assert held[WEIGHTS] == MATRIX + 3 * 4
    assert held[OPTIMIZER] >= 2 * MATRIX
    assert held[GRADIENTS] == MATRIX
    assert MASTERS not in held
    assert held[HEAD] > 0


def test_a_step_of_one_batch_holds_no_gradients_when_it_comes():
    many, one = (sum(rehearse(planned_step(accumulates=several)).training.values()) for several in (True, False))
    assert 0 <= many - one <= MATRIX


def test_short_weights_have_masters_and_gradients_in_float32():
    held = rehearse(planned_step(backend=Toy(torch.bfloat16))).training
    assert held[WEIGHTS] == MATRIX // 2 + 3 * 4
    assert held[MASTERS] == held[GRADIENTS] == MATRIX


def test_stochastic_rounding_needs_no_masters_and_one_parameter_at_a_time_in_float32():
    held = rehearse(planned_step(backend=Toy(torch.bfloat16), optimizer=AdamW(stochastic_rounding=True))).training
    copies = rehearse(planned_step(backend=Toy(torch.bfloat16)))
    assert held[WEIGHTS] == MATRIX // 2 + 3 * 4
    assert held[GRADIENTS] == MATRIX
    assert MASTERS not in held
    assert sum(held.values()) <= sum(copies.training.values())
    assert rehearse(planned_step(backend=Toy(torch.bfloat16), optimizer=AdamW8bit(stochastic_rounding=True))).training[GRADIENTS] == MATRIX


def test_a_live_reference_is_a_second_model_and_a_cached_one_is_a_pass():
    cached, live = rehearse(planned_step()), rehearse(planned_step(cached_reference=False))
    assert cached.reference_pass
    assert cached.reference_flops <= cached.flops
    assert REFERENCE not in cached.training
    assert not live.reference_pass
    assert live.training[REFERENCE] == MATRIX + 3 * 4
    assert not rehearse(planned_step(objective=Sft())).reference_pass


def test_mismatched_pairs_are_scored_by_the_reference_and_once_more_in_each_step():
    steps = [planned_step(backend=Multiplying(), objective=KtoPair(reference_point=point)) for point in ("step", "zero")]
    surveying, plain = map(rehearse, steps)
    assert surveying.reference_flops == 2 * plain.reference_flops > 0
    assert surveying.flops == plain.flops + plain.reference_flops


def test_a_checkpoint_is_the_weights_and_the_optimizers_state():
    assert rehearse(planned_step()).state == 3 * MATRIX + 4


def test_an_optimizer_that_reads_values_is_rehearsed_all_the_same():
    assert rehearse(planned_step(optimizer=AdamW8bit())).training[OPTIMIZER] > 0


def test_nothing_of_a_rehearsal_stays_and_random_numbers_go_on_as_before():
    before = torch.random.get_rng_state()
    rehearse(planned_step())
    assert torch.equal(torch.random.get_rng_state(), before)
    assert type(torch.empty(1)) is torch.Tensor


def test_code_that_cannot_go_without_data_says_so():
    class Peeking(Toy):
        def skeleton(self, start: Start) -> Skeleton:
            raise RuntimeError("looks at values")

    with pytest.raises(RuntimeError, match="looks at values"):
        rehearse(planned_step(backend=Peeking()))
