"""The fused head: projection, log-softmax and gather, of the target positions alone, in chunks.

Logits live in one buffer, in the type of the hidden states, that every chunk uses again: on a CPU
memory that is new each time costs more than the arithmetic on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

MAX_LOGITS = {"cpu": 1 << 23, "cuda": 1 << 26}
"""Logits held at once (32 MiB in float32 on a CPU: they stay in its cache)."""


def target_logp(hidden_MD: Tensor, weight_VD: Tensor, target_M: Tensor) -> Tensor:
    """Give log softmax(hidden weight^T)[target], (M,), in float32 or better; never holds (M, V) logits.

    The gradient is softmax's: d logp / d logits = onehot(target) - p. For a trained weight p is
    computed anew in the backward pass, from the saved normaliser. With a frozen one all that is
    ever needed of p is the weights that it expects, p weight, (M, D): they are taken while p is
    at hand, and the backward pass multiplies no matrices.
    """
    frozen = torch.is_grad_enabled() and hidden_MD.requires_grad and not weight_VD.requires_grad
    logp_M: Tensor = (_FrozenHead if frozen else _TrainedHead).apply(hidden_MD, weight_VD, target_M)  # type: ignore[no-untyped-call]
    return logp_M


class _TrainedHead(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_MD: Tensor, weight_VD: Tensor, target_M: Tensor) -> Tensor:
        logp_M, normaliser_M = _empty(hidden_MD), _empty(hidden_MD)
        for rows, logits in _chunks(hidden_MD, weight_VD):
            logp_M[rows], normaliser_M[rows], _ = _normalise(logits, target_M[rows])
        ctx.save_for_backward(hidden_MD, weight_VD, target_M, normaliser_M)
        return logp_M

    @staticmethod
    def backward(ctx: Any, grad_M: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        hidden_MD, weight_VD, target_M, normaliser_M = ctx.saved_tensors
        to_hidden, to_weight = ctx.needs_input_grad[:2]
        expected_MD = torch.empty_like(hidden_MD) if to_hidden else None
        grad_weight = torch.zeros_like(weight_VD, dtype=_wide(hidden_MD)) if to_weight else None
        # The factor of each row goes into the (M, D) sides of the products, not into the chunk.
        scaled_MD = hidden_MD * grad_M[:, None].to(hidden_MD.dtype)
        for rows, logits in _chunks(hidden_MD, weight_VD):
            p = logits.sub_(normaliser_M[rows, None]).exp_()
            if expected_MD is not None:
                torch.mm(p, weight_VD, out=expected_MD[rows])
            if grad_weight is not None:
                _subtract_product(grad_weight, p.T, scaled_MD[rows])
        if grad_weight is not None:
            grad_weight = grad_weight.index_add_(0, target_M, scaled_MD.to(grad_weight.dtype)).to(weight_VD.dtype)
        return _to_hidden(grad_M, weight_VD, target_M, expected_MD), grad_weight, None


class _FrozenHead(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_MD: Tensor, weight_VD: Tensor, target_M: Tensor) -> Tensor:
        logp_M, expected_MD = _empty(hidden_MD), torch.empty_like(hidden_MD)
        for rows, logits in _chunks(hidden_MD, weight_VD):
            logp_M[rows], _, total = _normalise(logits, target_M[rows])
            torch.mm(logits, weight_VD, out=expected_MD[rows])
            expected_MD[rows] /= total[:, None].to(hidden_MD.dtype)
        ctx.save_for_backward(weight_VD, target_M, expected_MD)
        return logp_M

    @staticmethod
    def backward(ctx: Any, grad_M: Tensor) -> tuple[Tensor | None, None, None]:
        return _to_hidden(grad_M, *ctx.saved_tensors), None, None


def _normalise(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probability of the targets, normaliser, and sum of what is left in the place of the logits: exp(logits - highest)."""
    wide = _wide(logits)
    highest = logits.amax(-1, keepdim=True)
    picked = logits.gather(-1, target[:, None]).squeeze(-1).to(wide)
    total = logits.sub_(highest).exp_().sum(-1, dtype=wide)
    normaliser = highest.squeeze(-1).to(wide) + total.log()
    return picked - normaliser, normaliser, total


def _to_hidden(grad_M: Tensor, weight_VD: Tensor, target_M: Tensor, expected_MD: Tensor | None) -> Tensor | None:
    """The weights of the targets less those that were expected, by row."""
    if expected_MD is None:
        return None
    return (weight_VD[target_M] - expected_MD).mul_(grad_M[:, None].to(expected_MD.dtype))


def _subtract_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Subtract a product of matrices; those in a shorter type than the total are multiplied in theirs, and added up in its own."""
    if total.dtype == left.dtype:
        total.addmm_(left, right, alpha=-1)
    else:
        total -= left @ right


def _chunks(hidden_MD: Tensor, weight_VD: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """The logits of some rows after others, all in one buffer."""
    size = max(1, MAX_LOGITS["cpu" if hidden_MD.device.type == "cpu" else "cuda"] // weight_VD.shape[0])
    buffer = hidden_MD.new_empty(min(size, len(hidden_MD)), weight_VD.shape[0])
    for start in range(0, len(hidden_MD), size):
        rows = slice(start, min(start + size, len(hidden_MD)))
        yield rows, torch.mm(hidden_MD[rows], weight_VD.T, out=buffer[: rows.stop - start])


def _empty(hidden_MD: Tensor) -> Tensor:
    return hidden_MD.new_empty(len(hidden_MD), dtype=_wide(hidden_MD))


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
