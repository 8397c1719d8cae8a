"""Full-precision copies of parameters that are kept in a shorter type.

A step of 5e-7 on a bfloat16 weight is lost to rounding; so the optimizer works on float32
copies, and the model gets their rounded values. An optimizer that rounds so that nothing is
lost has no need of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from zephyr_kit.shares import put

SHORT = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Masters:
    """The trained parameters by name, and what the optimizer sees of each: itself, or a float32 copy."""

    model: dict[str, nn.Parameter]
    optimized: dict[str, nn.Parameter]

    @staticmethod
    def of(named_parameters: Iterable[tuple[str, nn.Parameter]], *, updates_bfloat16: bool = False) -> Masters:
        """Copies for those parameters that need a gradient and are in a short type, unless the optimizer updates it as it is."""
        copied = (torch.float16,) if updates_bfloat16 else SHORT
        model = {name: p for name, p in named_parameters if p.requires_grad}
        optimized = {name: nn.Parameter(p.detach().float()) if p.dtype in copied else p for name, p in model.items()}
        for parameter in optimized.values():
            if parameter.dtype in SHORT:
                # Summed over micro-batches in bfloat16 it would lose a hundredth.
                parameter.grad_dtype = torch.float32
        masters = Masters(model, optimized)
        for short, full in masters._copies():
            short.register_post_accumulate_grad_hook(partial(_move_gradient, full))  # type: ignore[no-untyped-call]
        return masters

    @torch.no_grad()
    def give_back(self) -> None:
        """Round the copies into the model."""
        for short, full in self._copies():
            short.copy_(full)

    @torch.no_grad()
    def load(self, value_of: Callable[[str], Tensor]) -> None:
        """Set every trained parameter, by its name, in full precision."""
        for name, parameter in self.optimized.items():
            put(value_of(name), parameter)
        self.give_back()

    def _copies(self) -> Iterable[tuple[nn.Parameter, nn.Parameter]]:
        return ((short, self.optimized[name]) for name, short in self.model.items() if short is not self.optimized[name])


def _move_gradient(full: nn.Parameter, short: Tensor) -> None:
    """Add a gradient to the copy's as soon as it is there.

    Summed over micro-batches in bfloat16 it would lose a hundredth; and no second set of
    gradients is ever held.
    """
    assert short.grad is not None
    if full.grad is None:
        full.grad = short.grad.float()
    else:
        # Each value is made float32 on its way: a float32 copy of them all would be written, and read again.
        full.grad.add_(short.grad)
    short.grad = None
