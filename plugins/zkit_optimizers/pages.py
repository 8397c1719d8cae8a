"""bitsandbytes' AdamW, mended where it stalls the device, or forgets that its state is paged."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch

# It recommends a package for a product that no optimizer uses.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

from bitsandbytes.optim import AdamW  # noqa: E402

from zkit_optimizers.rounding import widened  # noqa: E402

CHANGING = ("state1", "state2", "absmax1", "absmax2")
"""What an update changes beside the parameter."""


class MendedAdamW(AdamW):  # type: ignore[misc]
    """The same mathematics."""

    initialized: bool
    found_inf: torch.Tensor | None = None
    """Above zero: change nothing. The trainer sets it, on the device, as it does for torch's fused optimizers."""
    _step_supports_amp_scaling = True

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Update every parameter; bitsandbytes waits for the device after each one, which only paging needs."""
        assert closure is None, "the trainer has none"
        if self.is_paged and self.found_inf is not None and bool(self.found_inf):
            return
        if not self.initialized:
            self.to_gpu()
            self.initialized = True
        for number, group in enumerate(self.param_groups):
            for place, parameter in enumerate(group["params"]):
                if parameter.grad is not None:
                    if not self.state[parameter]:
                        self.init_state(group, parameter, number, place)
                    with widened(parameter):
                        self._update(group, parameter, number, place)

    def _update(self, group: dict[str, Any], parameter: torch.Tensor, number: int, place: int) -> None:
        """Update one parameter, or put back what it was: its count of steps goes on, which its next updates hardly feel."""
        if self.is_paged:
            self.prefetch_state(parameter)
            self.update_step(group, parameter, number, place)
            torch.cuda.synchronize(parameter.device)
            return
        if self.found_inf is None:
            self.update_step(group, parameter, number, place)
            return
        state, skip = self.state[parameter], self.found_inf > 0
        changing = [parameter, *(state[name] for name in CHANGING if name in state)]
        before = [tensor.clone() for tensor in changing]
        self.update_step(group, parameter, number, place)
        for tensor, old in zip(changing, before, strict=True):
            torch.where(skip, old, tensor, out=tensor)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take a state over, its pages into pages: bitsandbytes would put all of it on the device, for good."""
        super().load_state_dict(state_dict, move_to_device=False)
        for parameter, state in self.state.items():
            for name in ("state1", "state2") if self.is_paged else ():
                state[name] = self.get_state_buffer(parameter, dtype=state[name].dtype).copy_(state[name])
        self.to_gpu()
