"""Updates of bfloat16 weights without float32 copies: each is made in float32, and rounded at random so that none is lost.

Rounded to the nearest, a step of 5e-7 on a weight of 0.02 is lost each time. Rounded up with the
probability of how near that is, it is there in expectation (arXiv 2010.06192; Gopher, arXiv
2112.11446, appendix C2). What is remembered of the gradients stays in full precision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from zephyr_kit.shares import local

CHUNK = 1 << 24
"""Numbers that are drawn at once."""


@contextmanager
def widened(parameter: nn.Parameter) -> Iterator[None]:
    """A bfloat16 parameter in float32, and afterwards what it has become, rounded; others as they are."""
    if parameter.dtype is not torch.bfloat16:
        yield
        return
    short = parameter.data
    parameter.data = short.float()
    try:
        yield
        round_into(local(short), local(parameter.data))
    finally:
        parameter.data = short


def round_into(short: Tensor, full: Tensor) -> None:
    """Round float32 numbers, which are overwritten, to the bfloat16 above or below, with torch's random numbers.

    The upper half of a float32 is a bfloat16. A number from 0 to 65535 that is added to the lower half
    carries into the upper one as often as the lower half is large; where that is zero, it never does.
    What is no number stays none: the carry would make a zero of it.
    """
    for piece in torch.split(full.view(-1), CHUNK):
        bits, finite = piece.view(torch.int32), piece.isfinite()
        bits.add_(torch.empty_like(bits).random_(0, 1 << 16).mul_(finite))
        bits.bitwise_and_(torch.where(finite, -(1 << 16), -1))
    short.copy_(full)


class RoundedAdamW(torch.optim.AdamW):
    """torch's AdamW, one parameter after the other, so that one alone is there in float32."""

    found_inf: Tensor | None = None
    """Above zero: change nothing. The trainer sets it, on the device."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        assert closure is None, "the trainer has none"
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    with widened(parameter):
                        self._update(parameter, group)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take a state over as it is: torch would round it to the type of the weights."""
        super().load_state_dict({**state_dict, "state": {}})
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for number, state in state_dict["state"].items():
            device = parameters[number].device
            self.state[parameters[number]] = {name: value.to(device) for name, value in state.items()}

    def _update(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        state, (beta1, beta2) = self.state[parameter], group["betas"]
        assert parameter.grad is not None
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        adamw(
            [parameter],
            [parameter.grad],
            [state["exp_avg"]],
            [state["exp_avg_sq"]],
            [],
            [state["step"]],
            fused=True,
            found_inf=self.found_inf,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
