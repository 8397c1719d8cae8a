"""Laws of optimizers."""

from __future__ import annotations

import pickle
from typing import ClassVar

import torch

from zephyr_kit.protocols import OptimizerFactory, updates_bfloat16
from zephyr_kit.testing.offer import OfferLaws


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
            self._step(parameter, optimizer)
        assert float(parameter.detach().norm()) < 64

    def test_goes_on_to_the_bit_from_its_state(self) -> None:
        """After two steps, a copy made of its state alone takes the next two to the same bits.

        Without it, a resumed run ends elsewhere.
        """
        parameter, optimizer = self._fresh()
        for _ in range(2):
            self._step(parameter, optimizer)
        state = pickle.loads(pickle.dumps(optimizer.state_dict()))  # noqa: S301  our own bytes
        other, again = self._fresh()
        with torch.no_grad():
            other.copy_(parameter)
        again.load_state_dict(state)
        for _ in range(2):
            self._step(parameter, optimizer)
            self._step(other, again)
        assert torch.equal(parameter, other)

    def test_heeds_the_rate_of_the_schedule(self) -> None:
        """The rate that the engine sets before each step is the one that counts: at 0 nothing moves.

        Without it, warm-up and decay are written in the preset and do nothing.
        """
        parameter, optimizer = self._fresh()
        before = parameter.detach().clone()
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        self._step(parameter, optimizer)
        self.same(parameter.detach(), before)

    def test_leaner_ones_are_optimizers_too(self) -> None:
        """What it offers in its place, where memory is short, can be built.

        Without it, the plan advises what does not work.
        """
        for leaner in self.factory.leaner():
            dtype = torch.bfloat16 if updates_bfloat16(leaner.offer) else torch.float32
            parameter = torch.nn.Parameter(torch.ones(8, 8, dtype=dtype))
            assert isinstance(leaner.offer.build([parameter], learning_rate=1e-2), torch.optim.Optimizer)

    def _fresh(self) -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
        parameter = torch.nn.Parameter(torch.ones(64, 64, device=self.device))
        return parameter, self.factory.build([parameter], learning_rate=1e-2)

    def _step(self, parameter: torch.nn.Parameter, optimizer: torch.optim.Optimizer) -> None:
        parameter.square().sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
