"""Gradients of replicated parameters, added up over ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from zephyr_kit.shares import share_of
from zephyr_kit.world import World

BUCKET = 1 << 28
"""Bytes of gradients in one message."""


def sum_gradients(parameters: Sequence[nn.Parameter], world: World) -> None:
    """Add them up, in few messages; those of weights that are sharded `fully_shard` has added up."""
    if world.size == 1:
        return
    for bucket in _buckets([p for p in parameters if share_of(p) is None]):
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p, dtype=p.grad_dtype) for p in bucket]
        flat = world.total(torch.cat([gradient.reshape(-1) for gradient in gradients]))
        for parameter, piece in zip(bucket, torch.split(flat, [gradient.numel() for gradient in gradients]), strict=True):
            parameter.grad = piece.view_as(parameter)


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Parameters whose gradients go into one message: of one type, and of no more than `BUCKET` bytes, unless it is a single one."""
    bucket: list[nn.Parameter] = []
    for parameter in parameters:
        filled = sum(map(_gradient_nbytes, [*bucket, parameter])) > BUCKET
        if bucket and (filled or bucket[0].dtype != parameter.dtype):
            yield bucket
            bucket = []
        bucket.append(parameter)
    if bucket:
        yield bucket


def _gradient_nbytes(parameter: nn.Parameter) -> int:
    return parameter.numel() * (parameter.grad_dtype or parameter.dtype).itemsize
