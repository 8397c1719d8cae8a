"""The fused head: projection, log-softmax and gather, of the target positions alone, in chunks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

MAX_LOGITS = 1 << 24
"""Logits held at once (64 MiB in float32)."""


def target_logp(hidden_MD: Tensor, weight_VD: Tensor, target_M: Tensor) -> Tensor:
    """Give log softmax(hidden weight^T)[target], (M,), in float32 or better; never holds (M, V) logits.

    The gradient is softmax's: d logp / d logits = onehot(target) - p, computed anew from the
    saved normaliser, chunk by chunk.
    """
    logp_M: Tensor = _TargetLogp.apply(hidden_MD, weight_VD, target_M)  # type: ignore[no-untyped-call]
    return logp_M


class _TargetLogp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_MD: Tensor, weight_VD: Tensor, target_M: Tensor) -> Tensor:
        pieces = []
        for rows in _chunks(hidden_MD, weight_VD):
            logits = _logits(hidden_MD[rows], weight_VD)
            normaliser = logits.logsumexp(-1)
            pieces.append((logits.gather(-1, target_M[rows, None]).squeeze(-1) - normaliser, normaliser))
        empty = hidden_MD.new_empty(0, dtype=_wide(hidden_MD))
        logp_M, normaliser_M = (torch.cat(parts) for parts in zip(*pieces, strict=True)) if pieces else (empty, empty)
        ctx.save_for_backward(hidden_MD, weight_VD, target_M, normaliser_M)
        return logp_M

    @staticmethod
    def backward(ctx: Any, grad_M: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        hidden_MD, weight_VD, target_M, normaliser_M = ctx.saved_tensors
        to_hidden, to_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.zeros_like(hidden_MD) if to_hidden else None
        grad_weight = torch.zeros_like(weight_VD, dtype=_wide(hidden_MD)) if to_weight else None
        for rows in _chunks(hidden_MD, weight_VD):
            logits = _logits(hidden_MD[rows], weight_VD)
            grad = logits.sub_(normaliser_M[rows, None]).exp_().mul_(-grad_M[rows, None])
            grad.scatter_add_(-1, target_M[rows, None], grad_M[rows, None])
            grad = grad.to(hidden_MD.dtype)
            if grad_hidden is not None:
                torch.mm(grad, weight_VD, out=grad_hidden[rows])
            if grad_weight is not None:
                grad_weight += grad.T @ hidden_MD[rows]
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight_VD.dtype), None


def _logits(hidden: Tensor, weight_VD: Tensor) -> Tensor:
    logits = hidden @ weight_VD.T
    return logits.to(_wide(hidden))


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _chunks(hidden_MD: Tensor, weight_VD: Tensor) -> Iterator[slice]:
    size = max(1, MAX_LOGITS // weight_VD.shape[0])
    return (slice(start, start + size) for start in range(0, len(hidden_MD), size))
