"""AdamW (arXiv 1711.05101), with its state in 32 or 8 bits, on the device or paged to the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from annotated_types import Ge, Gt, Interval

from zephyr_kit.protocols import Leaner

if TYPE_CHECKING:
    import torch
    from torch import nn

Decay = Annotated[float, Interval(ge=0, lt=1)]


@dataclass(frozen=True)
class AdamW:
    """torch's AdamW, fused."""

    beta1: Decay = 0.9
    beta2: Decay = 0.999
    epsilon: Annotated[float, Gt(0)] = 1e-8
    weight_decay: Annotated[float, Ge(0)] = 0.0

    def problems(self, device: torch.device) -> Sequence[str]:
        return []

    def build(self, parameters: Sequence[nn.Parameter], *, learning_rate: float) -> torch.optim.Optimizer:
        import torch

        return torch.optim.AdamW(parameters, **self._settings(learning_rate), fused=True)

    def leaner(self) -> Sequence[Leaner]:
        return [Leaner("optimizer", '"adamw_8bit"', AdamW8bit(**vars(self)))]

    def _settings(self, learning_rate: float) -> dict[str, Any]:
        return {"lr": learning_rate, "betas": (self.beta1, self.beta2), "eps": self.epsilon, "weight_decay": self.weight_decay}


@dataclass(frozen=True)
class _Bitsandbytes(AdamW):
    """One of bitsandbytes' AdamWs."""

    name: ClassVar[str]
    bits: ClassVar[int] = 8
    paged: ClassVar[bool] = False

    def problems(self, device: torch.device) -> Sequence[str]:
        if self.paged and device.type != "cuda":
            return [f'optimizer: {self.name} pages its state between a CUDA GPU and the host, but the device is {device.type}; use "adamw"']
        return []

    def build(self, parameters: Sequence[nn.Parameter], *, learning_rate: float) -> torch.optim.Optimizer:
        from zkit_optimizers.pages import MendedAdamW

        paged = self.paged and parameters[0].device.type == "cuda"
        optimizer: torch.optim.Optimizer = MendedAdamW(parameters, **self._settings(learning_rate), optim_bits=self.bits, is_paged=paged)
        return optimizer


class AdamW8bit(_Bitsandbytes):
    """bitsandbytes' AdamW with state quantised to 8 bits by blocks (arXiv 2110.02861)."""

    name = "AdamW8bit"

    def leaner(self) -> Sequence[Leaner]:
        return []


class PagedAdamW8bit(_Bitsandbytes):
    """The same, its state paged to the host when the device is full."""

    name, paged = "PagedAdamW8bit", True

    def leaner(self) -> Sequence[Leaner]:
        return []


class PagedAdamW32bit(_Bitsandbytes):
    """bitsandbytes' AdamW with 32-bit state, paged to the host when the device is full (QLoRA, arXiv 2305.14314)."""

    name, bits, paged = "PagedAdamW32bit", 32, True
