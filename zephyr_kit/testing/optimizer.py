"""Laws of optimizers."""

from __future__ import annotations

import pickle

import torch

from zephyr_kit.protocols import OptimizerFactory


class OptimizerLaws:
    """What resuming relies on: all of the optimizer's state is in its state_dict."""

    factory: OptimizerFactory

    def test_minimises(self) -> None:
        """A parabola has a lowest point."""
        parameter, optimizer = self._fresh()
        for _ in range(20):
            self._step(parameter, optimizer)
        assert float(parameter.detach().norm()) < 64

    def test_goes_on_to_the_bit_from_its_state(self) -> None:
        """Two steps, a copy through its state, two more: the same bits."""
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

    def _fresh(self) -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
        parameter = torch.nn.Parameter(torch.ones(64, 64))
        return parameter, self.factory.build([parameter], learning_rate=1e-2)

    def _step(self, parameter: torch.nn.Parameter, optimizer: torch.optim.Optimizer) -> None:
        parameter.square().sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
