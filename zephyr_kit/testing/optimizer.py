"""Laws of optimizers."""

from __future__ import annotations

import pickle
from typing import ClassVar

import torch
from hypothesis import strategies as st

from zephyr_kit.protocols import OptimizerFactory, updates_bfloat16
from zephyr_kit.testing.offer import OfferLaws
from zephyr_kit.testing.strategies import for_all

RATE = 1e-2
CASES = 5
"""Draws of rates, before and after."""


class OptimizerLaws(OfferLaws):
    """What resuming relies on: all of the optimizer's state is in its state_dict."""

    subject = "factory"
    title = "Optimizers"
    factory: OptimizerFactory
    device: ClassVar[torch.device] = torch.device("cpu")

    def test_minimises(self) -> None:
        """It finds its way down a parabola.

        Without it, nothing is learned.
        """
        parameter, optimizer = self._fresh()
        for _ in range(20):
            self._step(parameter, optimizer, RATE)
        assert float(parameter.detach().norm()) < 64

    def test_goes_on_to_the_bit_from_its_state(self) -> None:
        """After any number of steps, a copy made of its state alone takes the next ones to the same bits.

        Without it, a resumed run ends elsewhere.
        """

        def holds(drawn: tuple[list[float], list[float]]) -> None:
            before, after = drawn
            parameter, optimizer = self._fresh()
            for rate in before:
                self._step(parameter, optimizer, rate)
            state = pickle.loads(pickle.dumps(optimizer.state_dict()))  # noqa: S301  our own bytes
            other, again = self._fresh()
            with torch.no_grad():
                other.copy_(parameter)
            again.load_state_dict(state)
            for rate in after:
                self._step(parameter, optimizer, rate)
                self._step(other, again, rate)
            assert torch.equal(parameter, other)

        rates = st.lists(st.floats(0, 0.1), min_size=1, max_size=4)
        for_all(st.tuples(rates, rates), holds, cases=CASES)

    def test_heeds_the_rate_of_the_schedule(self) -> None:
        """The rate that the engine sets before each step is the one that counts: at 0 nothing moves.

        Without it, warm-up and decay are written in the preset and do nothing.
        """
        parameter, optimizer = self._fresh()
        before = parameter.detach().clone()
        self._step(parameter, optimizer, 0.0)
        self.same(parameter.detach(), before)

    def test_leaner_ones_are_optimizers_too(self) -> None:
        """What it offers in its place, where memory is short, can be built.

        Without it, the plan advises what does not work.
        """
        for leaner in self.factory.leaner():
            dtype = torch.bfloat16 if updates_bfloat16(leaner.offer) else torch.float32
            parameter = torch.nn.Parameter(torch.ones(8, 8, dtype=dtype))
            assert isinstance(leaner.offer.build([parameter], learning_rate=RATE), torch.optim.Optimizer)

    def _fresh(self) -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
        parameter = torch.nn.Parameter(torch.ones(64, 64, device=self.device))
        return parameter, self.factory.build([parameter], learning_rate=RATE)

    def _step(self, parameter: torch.nn.Parameter, optimizer: torch.optim.Optimizer, rate: float) -> None:
        """One step, as the engine takes it: at the rate of the schedule."""
        for group in optimizer.param_groups:
            group["lr"] = rate
        parameter.square().sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
