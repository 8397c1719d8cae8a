"""LoRA's product added to a layer's own in one pass (arXiv 2106.09685): in peft's layers, in the place of three."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from zkit_mistral.made import Made, how_made, mark


def add_in_one_pass(peft: Any, *, in_place: bool = True, make_again: bool = True) -> None:
    """Give every LoRA layer a forward that adds its adapters' products into the layer's own, or out of place where that is kept.

    With `make_again`, an input that says what it is made of is not kept for the backward pass.
    """
    from peft.tuners.lora.layer import LoraLayer

    for module in peft.modules():
        # A variant, such as DoRA, says what its own forward says.
        if isinstance(module, LoraLayer) and not module.lora_variant and isinstance(getattr(module, "base_layer", None), nn.Linear):
            module.forward = partial(_adapted, module, in_place=in_place, make_again=make_again)


def _adapted(self: Any, x: Tensor, *args: Any, in_place: bool = True, make_again: bool = True, **kwargs: Any) -> Tensor:
    names = [name for name in self.active_adapters if name in self.lora_A]
    special = args or kwargs or self.disable_adapters or self.merged or self.lora_variant
    if special or any(_type_of(self, name) != x.dtype for name in names):
        theirs: Tensor = type(self).forward(self, x, *args, **kwargs)
        return theirs
    if not names:
        bare: Tensor = self.base_layer(x)
        return bare
    result = _with_first(self, _adapter(self, x, names[0], make_again=make_again), x, in_place=in_place)
    for name in names[1:]:
        result = _AddProduct.apply(result, *_adapter(self, x, name, make_again=make_again), in_place)  # type: ignore[no-untyped-call]
    return result


def _with_first(layer: Any, adapter: tuple[Any, ...], x: Tensor, *, in_place: bool) -> Tensor:
    """The layer's own product and that of its first adapter."""
    base = layer.base_layer
    # Without dropout both read the same input.
    if adapter[0] is x and (whole := _whole(base, x.dtype)) is not None:
        both: Tensor = _BothProducts.apply(base.weight, whole, *adapter, in_place)  # type: ignore[no-untyped-call]
        return both
    # A product that its layer gives away as a view cannot be added into.
    own = base(x)
    added: Tensor = _AddProduct.apply(own, *adapter, in_place and not own._is_view())  # type: ignore[no-untyped-call]
    return added


def _whole(base: Any, dtype: torch.dtype) -> Callable[[Tensor], Tensor] | None:
    """What makes the layer's matrix of its weight, as it is or in 4 bits; nothing if it is trained, or if the layer does more."""
    weight = base.weight
    if getattr(base, "bias", None) is not None or weight.requires_grad:
        return None
    if type(base) is nn.Linear:
        return _as_it_is
    state = getattr(weight, "quant_state", None)
    reads_4_bits = type(base).__name__ == "Linear4bit" and state is not None and tuple(state.shape) == (base.out_features, base.in_features)
    # What a CPU has packed its own way for reading is not read here.
    if not reads_4_bits or base.compute_dtype not in (None, dtype) or getattr(state, "packing_format_for_cpu", False):
        return None
    return partial(_of_4_bits, state, dtype)


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def _of_4_bits(state: Any, dtype: torch.dtype, weight: Tensor) -> Tensor:
    from bitsandbytes.functional import dequantize_4bit

    found: Tensor = dequantize_4bit(weight.view(-1, 1), state).to(dtype)
    return found


def _adapter(layer: Any, x: Tensor, name: str, *, make_again: bool) -> tuple[Tensor, Tensor, Tensor, float, Made | None]:
    """Its input, its two matrices, its scale, and how the input came about if that is known."""
    dropout = layer.lora_dropout[name]
    hidden = _dropped(x, dropout.p) if isinstance(dropout, nn.Dropout) and dropout.p and dropout.training else x
    return hidden, layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name], how_made(hidden) if make_again else None


def _dropped(x: Tensor, p: float) -> Tensor:
    """With a share `p` dropped; made again of what is given and of the byte that says whether a number is seen, which autograd keeps."""
    dropped, seen = torch.native_dropout(x, p, train=True)
    make, of = how_made(x) or (_as_it_is, (x,))
    return mark(dropped, partial(_dropped_again, make, 1 / (1 - p)), seen, *of)


def _dropped_again(make: Callable[..., Tensor], scale: float, seen: Tensor, *of: Tensor) -> Tensor:
    return (make(*of) * seen).mul_(scale)


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
        ctx.save_for_backward(*_kept(ctx.needs_input_grad[2:4], low, down, up, x, made))
        ctx.scale, ctx.make = scale, made and made.make
        return _add(total, low, up, scale, in_place=in_place)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        low, down, up, *kept = ctx.saved_tensors
        by_low, by_down, by_up = _by_adapter(grad, _again(kept, ctx.make), low, up, ctx.scale)
        by_x = (by_low @ down).view(*grad.shape[:-1], -1) if ctx.needs_input_grad[1] else None
        return grad, by_x, by_down, by_up, None, None, None


class _BothProducts(torch.autograd.Function):
    """x W^T + scale x down^T up^T, where `whole` makes W of a weight that is not trained."""

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        whole: Callable[[Tensor], Tensor],
        x: Tensor,
        down: Tensor,
        up: Tensor,
        scale: float,
        made: Made | None,
        in_place: bool,  # noqa: FBT001
    ) -> Tensor:
        low = _rows(x) @ down.T
        ctx.save_for_backward(weight, *_kept(ctx.needs_input_grad[3:5], low, down, up, x, made))
        ctx.whole, ctx.scale, ctx.make = whole, scale, made and made.make
        return _add(nn.functional.linear(x, whole(weight)), low, up, scale, in_place=in_place)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, low, down, up, *kept = ctx.saved_tensors
        by_low, by_down, by_up = _by_adapter(grad, _again(kept, ctx.make), low, up, ctx.scale)
        by_x = None
        if ctx.needs_input_grad[2]:
            by_x = (_rows(grad) @ ctx.whole(weight)).addmm_(by_low, down).view(*grad.shape[:-1], -1)
        return None, None, by_x, by_down, by_up, None, None, None


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _kept(
    trains: tuple[bool, bool], low: Tensor, down: Tensor, up: Tensor, x: Tensor, made: Made | None
) -> tuple[Tensor | None, ...]:
    """What the backward pass needs: of an adapter that is not trained, its matrices alone."""
    trains_down, trains_up = trains
    given = ((x,) if made is None else made.of) if trains_down else ()
    return (low if trains_up else None, down, up, *given)


def _again(kept: list[Tensor], make: Callable[..., Tensor] | None) -> Tensor | None:
    """The rows of the input, if they are needed."""
    return _rows(kept[0] if make is None else make(*kept)) if kept else None


def _add(total: Tensor, low: Tensor, up: Tensor, scale: float, *, in_place: bool) -> Tensor:
    rows = total.view(-1, total.shape[-1])
    if in_place:
        rows.addmm_(low, up.T, alpha=scale)
        return total
    anew: Tensor = torch.ops.aten._unsafe_view(torch.addmm(rows, low, up.T, alpha=scale), total.shape)
    return anew


def _by_adapter(
    grad: Tensor, rows: Tensor | None, low: Tensor | None, up: Tensor, scale: float
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients by what lies between the two matrices, and by each of them that is trained."""
    upper = _rows(grad)
    by_low = (upper @ up).mul_(scale)
    by_down = by_low.T @ rows if rows is not None else None
    by_up = (upper.T @ low).mul_(scale) if low is not None else None
    return by_low, by_down, by_up
