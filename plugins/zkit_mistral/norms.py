"""RMSNorm that computes in the type of its input."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn


def keep_dtype(model: nn.Module) -> None:
    """Let every RMSNorm of a float64 model compute in float64.

    transformers' norms drop to float32 inside, which is right for shorter types but blurs
    proofs in float64 to 1e-5.
    """
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            _keep_dtype(module)


@torch.no_grad()
def _keep_dtype(norm: Any) -> None:
    """Replace its forward by the one of ours that says the same; a norm of another kind stays as it is."""
    if getattr(norm, "weight", None) is None or _eps(norm) is None:
        return
    example = torch.linspace(-2, 3, norm.weight.numel()).to(norm.weight)
    theirs = norm(example)
    for forward in (_scaled, _scaled_by_one_more):
        ours = MethodType(forward, norm)
        if torch.allclose(ours(example), theirs, rtol=1e-4, atol=1e-4):
            norm.forward = ours


def _scaled(self: Any, hidden: Tensor) -> Tensor:
    """Mistral's, Llama's, Qwen's."""
    scaled: Tensor = self.weight * _normed(self, hidden)
    return scaled


def _scaled_by_one_more(self: Any, hidden: Tensor) -> Tensor:
    """Gemma's."""
    scaled: Tensor = (1 + self.weight) * _normed(self, hidden)
    return scaled


def _normed(self: Any, hidden: Tensor) -> Tensor:
    normed: Tensor = hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + _eps(self))
    return normed


def _eps(norm: Any) -> Any:
    return getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
