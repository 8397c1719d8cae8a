"""RMSNorm and SwiGLU that pass over their tokens fewer times, and keep less for the backward pass.

They take the place of the modules' own where those say the same: a norm or an activation of
another kind stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from zkit_mistral import liger as by_liger
from zkit_mistral.made import mark

TOLERANCE = {torch.bfloat16: 2e-2, torch.float32: 1e-4, torch.float64: 1e-4}
"""Of roundings, transformers' to float32 inside included; another function lies further off."""
GATED = ("gate_proj", "up_proj", "down_proj", "act_fn")


def fuse(model: nn.Module, dtype: torch.dtype, *, liger: bool = False) -> None:
    """Replace the forward of every RMSNorm and gated MLP of the model, which computes in `dtype`, that is one of those below, or Liger's.

    float64 models then compute in float64 throughout: transformers' norms drop to float32
    inside, which is right for shorter types but blurs proofs in float64 to 1e-5.
    """
    norms, gates = ((*LIGERS_NORMS, *NORMS), (by_liger.gated, *GATES)) if liger else (NORMS, GATES)
    module: Any
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm") and getattr(module, "weight", None) is not None and _eps(module) is not None:
            _replace(module, _example(module.weight.numel(), module.weight, dtype), norms)
        elif is_gated(module) and type(module.act_fn).__name__ in ("SiLU", "SiLUActivation"):
            _replace(module, _example(module.gate_proj.in_features, module.gate_proj.weight, dtype), gates)


def is_gated(module: Any) -> bool:
    """Whether it has the parts of a gated feed-forward part."""
    return all(hasattr(module, name) for name in GATED)


class _RmsNorm(torch.autograd.Function):
    """x / rms(x) * weight (arXiv 1910.07467), in float32 at least; keeps x and one number a row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide: Tensor = x.to(torch.promote_types(x.dtype, torch.float32))
        inverse = (torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_() / x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        normed = wide * inverse
        # Rounded before it is scaled where the weight is in the short type, as transformers has it.
        scaled: Tensor = normed.to(x.dtype).mul_(weight) if weight.dtype == x.dtype else normed.mul_(weight)
        return scaled.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, inverse = ctx.saved_tensors
        wide, by_x = x.to(inverse.dtype), None
        product = grad * wide
        if ctx.needs_input_grad[0]:
            along = product @ weight.to(product.dtype)[:, None]
            by_x = (grad * weight).to(inverse.dtype).addcmul_(wide, along * inverse.square() / x.shape[-1], value=-1)
            by_x = by_x.mul_(inverse).to(x.dtype)
        by_weight = inverse.flatten() @ product.flatten(0, -2) if ctx.needs_input_grad[1] else None
        return by_x, None if by_weight is None else by_weight.to(weight.dtype), None


class _SwiGlu(torch.autograd.Function):
    """silu(gate) * up (arXiv 2002.05202); keeps its two arguments alone."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return _swiglu(gate, up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad * up, gate), silu(gate).mul_(grad)


def _scaled(self: Any, hidden: Tensor) -> Tensor:
    """Mistral's, Llama's, Qwen's."""
    scaled: Tensor = _RmsNorm.apply(hidden, self.weight, _eps(self))  # type: ignore[no-untyped-call]
    return scaled


def _scaled_by_one_more(self: Any, hidden: Tensor) -> Tensor:
    """Gemma's."""
    weight = 1 + self.weight.to(torch.promote_types(hidden.dtype, torch.float32))
    scaled: Tensor = _RmsNorm.apply(hidden, weight, _eps(self))  # type: ignore[no-untyped-call]
    return scaled


def _gated(self: Any, hidden: Tensor) -> Tensor:
    """Mistral's, Llama's, Qwen's."""
    gate, up = self.gate_proj(hidden), self.up_proj(hidden)
    product: Tensor = _SwiGlu.apply(gate, up)  # type: ignore[no-untyped-call]
    down: Tensor = self.down_proj(mark(product, _swiglu, gate, up))
    return down


def _swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return silu(gate).mul_(up)


@torch.no_grad()
def _replace(module: Any, example: Tensor, ours: tuple[Callable[..., Tensor], ...]) -> None:
    """Give it the first forward of ours that says what its own does of an example."""
    theirs = module(example)
    for forward in ours:
        bound = MethodType(forward, module)
        if example.is_meta or _agree(bound(example), theirs):  # weights without data cannot disagree
            module.forward = bound
            return


def _agree(ours: Tensor, theirs: Tensor) -> bool:
    tolerance = TOLERANCE[ours.dtype]
    return torch.allclose(ours, theirs, rtol=tolerance, atol=tolerance * float(theirs.abs().max()))


def _example(width: int, like: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.linspace(-2, 3, width, device=like.device).to(dtype)[None]


def _eps(norm: Any) -> Any:
    return getattr(norm, "variance_epsilon", getattr(norm, "eps", None))


NORMS, GATES = (_scaled, _scaled_by_one_more), (_gated,)
LIGERS_NORMS = (by_liger.scaled, by_liger.scaled_by_one_more)
