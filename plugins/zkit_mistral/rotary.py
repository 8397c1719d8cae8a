"""Another rotation of queries and keys (arXiv 2104.09864) in the place of transformers'."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor

NAME = "apply_rotary_pos_emb"
Rotation = Callable[..., tuple[Tensor, Tensor]]


@torch.no_grad()
def use_rotation(model: Any, dtype: torch.dtype, rotation: Rotation) -> None:
    """Let every attention of the model that rotates as Llama's does rotate by `rotation`; others stay as they are.

    transformers' layers find theirs among the globals of their module, which other models share: so a
    layer gets a copy of its forward with globals of its own.
    """
    for module in model.modules():
        forward = type(module).forward
        theirs = getattr(forward, "__globals__", {}).get(NAME)
        if theirs is not None and NAME in forward.__code__.co_names and _agree(theirs, rotation, module, dtype):
            module.forward = MethodType(_with_rotation(forward, rotation), module)


def _with_rotation(forward: Any, rotation: Rotation) -> Any:
    theirs = {**forward.__globals__, NAME: rotation}
    copy = FunctionType(forward.__code__, theirs, forward.__name__, forward.__defaults__, forward.__closure__)
    copy.__kwdefaults__ = forward.__kwdefaults__
    return copy


def _agree(theirs: Rotation, ours: Rotation, module: Any, dtype: torch.dtype) -> bool:
    """Whether both say the same of a query and a key."""
    size, device = getattr(module, "head_dim", None), next(module.parameters()).device
    if size is None or size % 2:
        return False
    draw = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, heads, 3, size, generator=draw).to(device, dtype) for heads in (2, 1))
    angles = torch.linspace(0, 3, 3 * size // 2).view(1, 3, -1).repeat(1, 1, 2)
    turns = [turn.to(device, dtype) for turn in (angles.cos(), angles.sin())]
    found = [rotate(query.clone(), key.clone(), *turns) for rotate in (theirs, ours)]
    tolerance = 4 * torch.finfo(dtype).eps
    return all(torch.allclose(one, other, rtol=tolerance, atol=4 * tolerance) for one, other in zip(*found, strict=True))
