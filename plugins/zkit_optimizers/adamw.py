"""AdamW (arXiv 1711.05101), with its state in 32 or 8 bits, on the device or paged to the host, and with or without float32 weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from annotated_types import Ge, Gt, Interval

from zephyr_kit import ZkitError
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
    stochastic_rounding: bool = False
    """Update bfloat16 weights without float32 copies, each rounded up or down at random; what ranks share out is float32 as ever."""

    @property
    def updates_bfloat16(self) -> bool:
        return self.stochastic_rounding

    def problems(self, device: torch.device) -> Sequence[str]:
        return []

    def build(self, parameters: Sequence[nn.Parameter], *, learning_rate: float) -> torch.optim.Optimizer:
        if self.stochastic_rounding:
            _check_roundable(parameters)
        return self._built(parameters, self._settings(learning_rate))

    def leaner(self) -> Sequence[Leaner]:
        smaller = AdamW8bit(**vars(self))
        return [_offer("adamw_8bit", smaller), *smaller.leaner()]

    def _built(self, parameters: Sequence[nn.Parameter], settings: dict[str, Any]) -> torch.optim.Optimizer:
        import torch

        from zkit_optimizers.rounding import RoundedAdamW

        kind = RoundedAdamW if self.stochastic_rounding else torch.optim.AdamW
        return kind(parameters, **settings, fused=True)

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

    def _built(self, parameters: Sequence[nn.Parameter], settings: dict[str, Any]) -> torch.optim.Optimizer:
        from zkit_optimizers.pages import MendedAdamW

        paged = self.paged and parameters[0].device.type == "cuda"
        optimizer: torch.optim.Optimizer = MendedAdamW(parameters, **settings, optim_bits=self.bits, is_paged=paged)
        return optimizer


class AdamW8bit(_Bitsandbytes):
    """bitsandbytes' AdamW with state quantised to 8 bits by blocks (arXiv 2110.02861)."""

    name = "AdamW8bit"

    def leaner(self) -> Sequence[Leaner]:
        return [] if self.stochastic_rounding else [_offer("adamw_8bit", replace(self, stochastic_rounding=True))]


class PagedAdamW8bit(_Bitsandbytes):
    """The same, its state paged to the host when the device is full."""

    name, paged = "PagedAdamW8bit", True

    def leaner(self) -> Sequence[Leaner]:
        return [] if self.stochastic_rounding else [_offer("paged_adamw_8bit", replace(self, stochastic_rounding=True))]


class PagedAdamW32bit(_Bitsandbytes):
    """bitsandbytes' AdamW with 32-bit state, paged to the host when the device is full (QLoRA, arXiv 2305.14314)."""

    name, bits, paged = "PagedAdamW32bit", 32, True


def _offer(use: str, factory: AdamW) -> Leaner:
    table = f'{{ use = "{use}", stochastic_rounding = true }}'
    return Leaner("optimizer", table if factory.stochastic_rounding else f'"{use}"', factory)


def _check_roundable(parameters: Sequence[nn.Parameter]) -> None:
    import torch

    from zephyr_kit.shares import share_of

    if not any(p.dtype is torch.bfloat16 or share_of(p) is not None for p in parameters):
        dtype = str(parameters[0].dtype).removeprefix("torch.")
        raise ZkitError(
            f"train.optimizer.stochastic_rounding = true rounds what is trained in bfloat16, but here that is {dtype}; "
            'leave it out, or set `dtype = "bfloat16"` under [model]'
        )
