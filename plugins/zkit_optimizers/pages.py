"""bitsandbytes' AdamW, mended where it stalls the device, or forgets that its state is paged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from bitsandbytes.optim import AdamW


class MendedAdamW(AdamW):  # type: ignore[misc]
    """The same mathematics."""

    initialized: bool

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter; bitsandbytes waits for the device after each one, which only paging needs."""
        if self.is_paged:
            loss: float | None = super().step(closure)
            return loss
        assert closure is None, "the trainer has none"
        if not self.initialized:
            self.to_gpu()
            self.initialized = True
        for number, group in enumerate(self.param_groups):
            for place, parameter in enumerate(group["params"]):
                if parameter.grad is not None:
                    if not self.state[parameter]:
                        self.init_state(group, parameter, number, place)
                    self.update_step(group, parameter, number, place)
        return None

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take a state over, its pages into pages: bitsandbytes would put all of it on the device, for good."""
        super().load_state_dict(state_dict, move_to_device=False)
        for parameter, state in self.state.items():
            for name in ("state1", "state2") if self.is_paged else ():
                state[name] = self.get_state_buffer(parameter, dtype=state[name].dtype).copy_(state[name])
        self.to_gpu()
