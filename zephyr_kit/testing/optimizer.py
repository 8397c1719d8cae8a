"""Laws of optimizers."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import ClassVar

import torch
from hypothesis import strategies as st

from zephyr_kit.engine import seed_everything
from zephyr_kit.protocols import OptimizerFactory, updates_bfloat16
from zephyr_kit.testing.laws import DoesNotApply
from zephyr_kit.testing.offer import OfferLaws
from zephyr_kit.testing.strategies import for_all

RATE = 1e-2
SHAPES = ((64, 64), (64,), (8, 8))
SEEN = 1e-3
"""A tenth of the way of 1,000 steps of 1e-5."""


class OptimizerLaws(OfferLaws):
    """What resuming relies on: all of the optimizer's state is in its state_dict."""

    subject = "factory"
    title = "Optimizers"
    factory: OptimizerFactory
    device: ClassVar[torch.device] = torch.device("cpu")

    cases: ClassVar[int] = 5
    """Draws of rates, before and after."""

    def test_minimises(self) -> None:
        """It finds its way down a parabola, with matrices and vectors, and leaves what has no gradient alone.

        Without it, nothing is learned.
        """
        parameters, optimizer = self._fresh()
        before = [parameter.detach().clone() for parameter in parameters]
        for number in range(100):
            self._step(parameters, optimizer, RATE, number)
        *moved, idle = zip(before, parameters, strict=True)
        assert all(float(now.detach().norm()) < float(then.norm()) / 2 for then, now in moved)
        assert torch.equal(*idle), "a parameter without a gradient has moved"

    def test_goes_on_to_the_bit_from_its_state(self) -> None:
        """After any number of steps, a copy made of its state alone takes the next ones to the same bits.

        Without it, a resumed run ends elsewhere.
        """

        def holds(drawn: tuple[list[float], list[float]]) -> None:
            before, after = drawn
            parameters, optimizer = self._fresh()
            for number, rate in enumerate(before):
                self._step(parameters, optimizer, rate, number)
            state = pickle.loads(pickle.dumps(optimizer.state_dict()))  # noqa: S301  our own bytes
            others, again = self._fresh()
            with torch.no_grad():
                for other, parameter in zip(others, parameters, strict=True):
                    other.copy_(parameter)
            again.load_state_dict(state)
            for number, rate in enumerate(after, len(before)):
                self._step(parameters, optimizer, rate, number)
                self._step(others, again, rate, number)
            assert all(map(torch.equal, parameters, others)), "a copy made of its state alone takes other steps"

        rates = st.lists(st.floats(0, 0.1), min_size=1, max_size=4)
        for_all(st.tuples(rates, rates), holds, cases=self.cases)

    def test_heeds_the_rate_of_the_schedule(self) -> None:
        """The rate that the engine sets before each step is the one that counts: at 0 nothing moves, at another rate by another way.

        Without it, warm-up and decay are written in the preset and do nothing.
        """
        ends = []
        for rate in (0.0, RATE / 10, RATE):
            parameters, optimizer = self._fresh()
            self._step(parameters, optimizer, rate, 0)
            ends.append(parameters[0].detach())
        self.same(ends[0], self._fresh()[0][0].detach())
        assert not torch.equal(ends[1], ends[2]), "a tenth of the rate makes the same step"

    def test_loses_no_small_step(self) -> None:
        """One that says `updates_bfloat16` moves bfloat16 weights by steps that are smaller than they can tell, on the average.

        Without it, training stands still where the rate is low, and nothing says so.
        """
        if not updates_bfloat16(self.factory):
            raise DoesNotApply("bfloat16 weights have float32 copies with it")
        parameters, optimizer = self._fresh(torch.bfloat16)
        before = parameters[0].detach().double().mean()
        for number in range(1000):
            self._step(parameters, optimizer, 1e-5, number)
        moved = float(before - parameters[0].detach().double().mean())
        assert moved > SEEN, f"after 1,000 steps of 1e-05, weights of 1 have moved by {moved:.1e} on the average"

    def test_leaner_ones_are_optimizers_too(self) -> None:
        """What it offers in its place, where memory is short, can be built.

        Without it, the plan advises what does not work.
        """
        for leaner in self.factory.leaner():
            dtype = torch.bfloat16 if updates_bfloat16(leaner.offer) else torch.float32
            parameter = torch.nn.Parameter(torch.ones(8, 8, dtype=dtype))
            assert isinstance(leaner.offer.build([parameter], learning_rate=RATE), torch.optim.Optimizer)

    def _fresh(self, dtype: torch.dtype = torch.float32) -> tuple[list[torch.nn.Parameter], torch.optim.Optimizer]:
        """A matrix, a vector, and a matrix that has no gradient."""
        parameters = [torch.nn.Parameter(torch.ones(shape, device=self.device, dtype=dtype)) for shape in SHAPES]
        return parameters, self.factory.build(parameters, learning_rate=RATE)

    def _step(self, parameters: Sequence[torch.nn.Parameter], optimizer: torch.optim.Optimizer, rate: float, number: int) -> None:
        """One step, as the engine takes it: at the rate of the schedule, with random numbers of its own."""
        seed_everything(0, number)
        for group in optimizer.param_groups:
            group["lr"] = rate
        torch.stack([parameter.square().sum() for parameter in parameters[:-1]]).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
