"""Quantised layers on tensors without data: what they hold, and what they hold while they compute.

bitsandbytes' own cannot be made of such tensors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from zkit_mistral.settings import Quantize

BLOCK, OUTER_BLOCK = 64, 256
"""Weights under one constant, and constants under one of theirs (QLoRA, arXiv 2305.14314, section 3)."""


class PackedLinear(nn.Linear):
    """A frozen layer with packed weights, which unpacks all of them for every product, forward and backward."""

    def __init__(self, layer: nn.Linear, quantize: Quantize) -> None:
        # Not Linear's own, which would make whole weights first.
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.dtype = layer.weight.dtype
        self.weight = nn.Parameter(_packed(layer.weight, quantize), requires_grad=False)
        self.bias = layer.bias
        for number, constants in enumerate(_constants(layer.weight, quantize)):
            self.register_buffer(f"constants_{number}", constants)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  torch's name
        """As bitsandbytes' layers do it."""
        product: Tensor = _UnpackedProduct.apply(input.to(self.dtype), self.out_features)  # type: ignore[no-untyped-call]
        return product if self.bias is None else product + self.bias


class _UnpackedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, width: int) -> Tensor:
        ctx.shape = (width, rows.shape[-1])
        return nn.functional.linear(rows, rows.new_empty(ctx.shape))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad @ grad.new_empty(ctx.shape), None


def quantise(model: Any, quantize: Quantize, *, dtype: torch.dtype) -> int:
    """Put stand-ins for all linear layers but the head; gives the bytes of their files, in which they are `dtype`."""
    head, mapped = model.get_output_embeddings(), 0
    linear = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and layer is not head]
    for name, layer in linear:
        mapped += layer.weight.numel() * dtype.itemsize
        model.set_submodule(name, PackedLinear(layer, quantize))
    return mapped


def _packed(weight: Tensor, quantize: Quantize) -> Tensor:
    if quantize.bits == 8:
        return torch.empty(weight.shape, dtype=torch.int8)
    # In the model's type, as `bnb_4bit_quant_storage` has it: two weights a byte.
    return torch.empty(weight.numel() // 2 // weight.element_size(), 1, dtype=weight.dtype)


def _constants(weight: Tensor, quantize: Quantize) -> list[Tensor]:
    if quantize.bits == 8:
        return [torch.empty(weight.shape[0])]
    count = -(-weight.numel() // BLOCK)
    if quantize.double is False:
        return [torch.empty(count)]
    return [torch.empty(count, dtype=torch.uint8), torch.empty(-(-count // OUTER_BLOCK))]
