"""LoRA's product added to a layer's own in one pass (arXiv 2106.09685): in peft's layers, in the place of three."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from zkit_mistral.made import Made, how_made


def add_in_one_pass(peft: Any, *, in_place: bool = True) -> None:
    """Give every LoRA layer a forward that adds its adapters' products into the layer's own, or out of place where that is kept."""
    from peft.tuners.lora.layer import LoraLayer

    for module in peft.modules():
        # A variant, such as DoRA, says what its own forward says.
        if isinstance(module, LoraLayer) and not module.lora_variant and isinstance(getattr(module, "base_layer", None), nn.Linear):
            module.forward = MethodType(_adapted if in_place else _adapted_anew, module)


def _adapted_anew(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return _adapted(self, x, *args, in_place=False, **kwargs)


def _adapted(self: Any, x: Tensor, *args: Any, in_place: bool = True, **kwargs: Any) -> Tensor:
    names = [name for name in self.active_adapters if name in self.lora_A]
    special = args or kwargs or self.disable_adapters or self.merged or self.lora_variant
    if special or any(_type_of(self, name) != x.dtype for name in names):
        theirs: Tensor = type(self).forward(self, x, *args, **kwargs)
        return theirs
    if not names:
        bare: Tensor = self.base_layer(x)
        return bare
    result = _with_first(self, x, names[0], in_place=in_place)
    for name in names[1:]:
        result = _AddProduct.apply(result, *_adapter(self, x, name), in_place)  # type: ignore[no-untyped-call]
    return result


def _with_first(layer: Any, x: Tensor, name: str, *, in_place: bool) -> Tensor:
    """The layer's own product and that of its first adapter."""
    base, adapter = layer.base_layer, _adapter(layer, x, name)
    # Without dropout both read the same input.
    if _is_plain(base) and adapter[0] is x:
        both: Tensor = _BothProducts.apply(base.weight, *adapter, in_place)  # type: ignore[no-untyped-call]
        return both
    # A product that its layer gives away as a view cannot be added into.
    own = base(x)
    added: Tensor = _AddProduct.apply(own, *adapter, in_place and not own._is_view())  # type: ignore[no-untyped-call]
    return added


def _is_plain(base: Any) -> bool:
    return type(base) is nn.Linear and getattr(base, "bias", None) is None and not base.weight.requires_grad


def _adapter(layer: Any, x: Tensor, name: str) -> tuple[Tensor, Tensor, Tensor, float, Made | None]:
    """Its input, its two matrices, its scale, and how the input came about if that is known."""
    dropout = layer.lora_dropout[name]
    hidden = dropout(x) if isinstance(dropout, nn.Dropout) and dropout.p else x
    return hidden, layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name], how_made(hidden)


def _type_of(layer: Any, name: str) -> torch.dtype:
    found: torch.dtype = layer.lora_A[name].weight.dtype
    return found


class _AddProduct(torch.autograd.Function):
    """`total` + scale x down^T up^T."""

    @staticmethod
    def forward(
        ctx: Any, total: Tensor, x: Tensor, down: Tensor, up: Tensor, scale: float, made: Made | None, in_place: bool  # noqa: FBT001
    ) -> Tensor:
        low = _rows(x) @ down.T
        if in_place:
            ctx.mark_dirty(total)
        ctx.save_for_backward(low, down, up, *_kept(x, made))
        ctx.scale, ctx.make = scale, made and made.make
        return _add(total, low, up, scale, in_place=in_place)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        low, down, up, *kept = ctx.saved_tensors
        rows = _again(kept, ctx.make)
        by_low, by_down, by_up = _by_adapter(grad, rows, low, up, ctx.scale, ctx.needs_input_grad[2:4])
        by_x = (by_low @ down).view(*grad.shape[:-1], -1) if ctx.needs_input_grad[1] else None
        return grad, by_x, by_down, by_up, None, None, None


class _BothProducts(torch.autograd.Function):
    """x weight^T + scale x down^T up^T, of a weight that is not trained."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, x: Tensor, down: Tensor, up: Tensor, scale: float, made: Made | None, in_place: bool  # noqa: FBT001
    ) -> Tensor:
        low = _rows(x) @ down.T
        ctx.save_for_backward(weight, low, down, up, *_kept(x, made))
        ctx.scale, ctx.make = scale, made and made.make
        return _add(nn.functional.linear(x, weight), low, up, scale, in_place=in_place)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, low, down, up, *kept = ctx.saved_tensors
        rows = _again(kept, ctx.make)
        by_low, by_down, by_up = _by_adapter(grad, rows, low, up, ctx.scale, ctx.needs_input_grad[2:4])
        by_x = None
        if ctx.needs_input_grad[1]:
            by_x = (_rows(grad) @ weight).addmm_(by_low, down).view(*grad.shape[:-1], -1)
        return None, by_x, by_down, by_up, None, None, None


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _kept(x: Tensor, made: Made | None) -> tuple[Tensor, ...]:
    """What the backward pass needs to have the input."""
    return (x,) if made is None else made.of


def _again(kept: list[Tensor], make: Callable[..., Tensor] | None) -> Tensor:
    """The rows of the input."""
    return _rows(kept[0] if make is None else make(*kept))


def _add(total: Tensor, low: Tensor, up: Tensor, scale: float, *, in_place: bool) -> Tensor:
    rows = total.view(-1, total.shape[-1])
    if in_place:
        rows.addmm_(low, up.T, alpha=scale)
        return total
    anew: Tensor = torch.ops.aten._unsafe_view(torch.addmm(rows, low, up.T, alpha=scale), total.shape)
    return anew


def _by_adapter(
    grad: Tensor, rows: Tensor, low: Tensor, up: Tensor, scale: float, wanted: tuple[bool, bool]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients by what lies between the two matrices, and by each of them."""
    upper = _rows(grad)
    by_low = (upper @ up).mul_(scale)
    by_down = by_low.T @ rows if wanted[0] else None
    by_up = (upper.T @ low).mul_(scale) if wanted[1] else None
    return by_low, by_down, by_up
