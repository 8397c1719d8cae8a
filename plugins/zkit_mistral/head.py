"""The fused head: projection, log-softmax and gather, of the target positions alone, in chunks.

Logits live in one buffer, in the type of the hidden states, that chunks use again: on a CPU
memory that is new each time costs more than the arithmetic on it. What the last chunks left
there serves the backward pass, which computes only the others anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = {"cpu": 1 << 23, "cuda": 1 << 25}
"""Logits computed at once; 32 MiB in float32 stay in a processor's cache."""
BUFFER = 1 << 25
"""Logits held at once."""


def target_logp(hidden_MD: Tensor, weight_VD: Tensor, target_M: Tensor) -> Tensor:
    """Give log softmax(hidden weight^T)[target], (M,), in float32 or better; never holds more logits than `BUFFER`.

    The gradient is softmax's: d logp / d logits = onehot(target) - p. For a trained weight, p is
    computed anew in the backward pass where it is no longer in the buffer. With a frozen one all
    that is ever needed is (p - onehot) weight, (M, D): it is taken while p is at hand, and the
    backward pass multiplies no matrices.
    """
    with_gradient = torch.is_grad_enabled() and (hidden_MD.requires_grad or weight_VD.requires_grad)
    frozen = with_gradient and not weight_VD.requires_grad
    head = _FrozenHead if frozen else _TrainedHead
    logp_M: Tensor = head.apply(hidden_MD, weight_VD, target_M, with_gradient and not frozen)  # type: ignore[no-untyped-call]
    return logp_M


class _TrainedHead(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_MD: Tensor, weight_VD: Tensor, target_M: Tensor, keep: bool) -> Tensor:  # noqa: FBT001  torch's signature
        logp_M, normaliser_M, total_M = (_empty(hidden_MD) for _ in range(3))
        ctx.buffer = _Buffer.of(hidden_MD, weight_VD, kept=keep)
        for rows, logits in ctx.buffer.chunks(hidden_MD, weight_VD):
            logp_M[rows], normaliser_M[rows], total_M[rows] = _normalise(logits, target_M[rows])
        ctx.save_for_backward(hidden_MD, weight_VD, target_M, logp_M, normaliser_M, total_M)
        return logp_M

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_M: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        hidden_MD, weight_VD, target_M, logp_M, normaliser_M, total_M = ctx.saved_tensors
        to_hidden, to_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden_MD) if to_hidden else None
        grad_weight = torch.zeros_like(weight_VD, dtype=_wide(hidden_MD)) if to_weight else None
        # The factor of each row goes into the (M, D) sides of the products, not into the chunk.
        scaled_MD = hidden_MD * grad_M[:, None].to(hidden_MD.dtype)
        # A second backward pass finds nothing in the buffer that it could use.
        buffer, ctx.buffer = ctx.buffer or _Buffer.of(hidden_MD, weight_VD, kept=False), None
        for rows, p in buffer.probabilities(hidden_MD, weight_VD, normaliser_M, total_M):
            _less_one(p, target_M[rows], logp_M[rows])
            if grad_hidden is not None:
                torch.mm(p, weight_VD, out=grad_hidden[rows])
            if grad_weight is not None:
                _subtract_product(grad_weight, p.T, scaled_MD[rows])
        if grad_hidden is not None:
            grad_hidden *= -grad_M[:, None].to(grad_hidden.dtype)
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight_VD.dtype), None, None


class _FrozenHead(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_MD: Tensor, weight_VD: Tensor, target_M: Tensor, _keep: bool) -> Tensor:  # noqa: FBT001  torch's signature
        logp_M, missed_MD = _empty(hidden_MD), torch.empty_like(hidden_MD)
        for rows, logits in _Buffer.of(hidden_MD, weight_VD, kept=False).chunks(hidden_MD, weight_VD):
            logp_M[rows], _, total = _normalise(logits, target_M[rows])
            p = logits.div_(total[:, None])
            _less_one(p, target_M[rows], logp_M[rows])
            torch.mm(p, weight_VD, out=missed_MD[rows])
        ctx.save_for_backward(missed_MD)
        return logp_M

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_M: Tensor) -> tuple[Tensor, None, None, None]:
        (missed_MD,) = ctx.saved_tensors
        return missed_MD * -grad_M[:, None].to(missed_MD.dtype), None, None, None


def _normalise(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probability of the targets, normaliser, and sum of what is left in the place of the logits: exp(logits - highest)."""
    wide = _wide(logits)
    highest = logits.amax(-1, keepdim=True)
    picked = logits.gather(-1, target[:, None]).squeeze(-1).to(wide)
    total = logits.sub_(highest).exp_().sum(-1, dtype=wide)
    normaliser = highest.squeeze(-1).to(wide) + total.log()
    return picked - normaliser, normaliser, total


def _less_one(p: Tensor, target: Tensor, logp: Tensor) -> None:
    """Put p - 1 in the place of each target's p: from its logarithm, for next to 1 a short type cannot tell p from it."""
    p.scatter_(-1, target[:, None], logp.expm1()[:, None].to(p.dtype))


def _subtract_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Subtract a product of matrices; those in a shorter type than the total are multiplied in theirs, and added up in its own."""
    if total.dtype == left.dtype:
        total.addmm_(left, right, alpha=-1)
    else:
        total -= left @ right


@dataclass(frozen=True, slots=True)
class _Buffer:
    """Logits of a chunk of rows at a time; the last rows each keep a place of their own, the others use the first one in turn."""

    logits: Tensor
    chunk: int
    num_rows: int
    kept: bool

    @staticmethod
    def of(hidden_MD: Tensor, weight_VD: Tensor, *, kept: bool) -> _Buffer:
        num_rows, vocabulary = len(hidden_MD), weight_VD.shape[0]
        at_once = CHUNK["cpu" if hidden_MD.device.type == "cpu" else "cuda"]
        chunk, held = (max(1, size // vocabulary) for size in (at_once, BUFFER))
        # Whole chunks, so that the last ones end with the last row.
        held = held // chunk * chunk if kept else chunk
        return _Buffer(hidden_MD.new_empty(min(held, num_rows), vocabulary), chunk, num_rows, kept)

    def chunks(self, hidden_MD: Tensor, weight_VD: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """The logits of some rows after others."""
        for rows in self._rows():
            yield rows, torch.mm(hidden_MD[rows], weight_VD.T, out=self._place(rows))

    def probabilities(
        self, hidden_MD: Tensor, weight_VD: Tensor, normaliser_M: Tensor, total_M: Tensor
    ) -> Iterator[tuple[slice, Tensor]]:
        """Softmax of some rows before others: of the last ones from the exponentials that are still there."""
        for rows in reversed(list(self._rows())):
            place = self._place(rows)
            if self.kept and self._is_kept(rows):
                yield rows, place.div_(total_M[rows, None])
            else:
                torch.mm(hidden_MD[rows], weight_VD.T, out=place)
                yield rows, place.sub_(normaliser_M[rows, None]).exp_()

    def _rows(self) -> Iterator[slice]:
        first = self.num_rows % self.chunk
        ends = [*([first] if first else []), *range(first + self.chunk, self.num_rows + 1, self.chunk)]
        return (slice(max(0, end - self.chunk), end) for end in ends)

    def _place(self, rows: slice) -> Tensor:
        start = rows.start - (self.num_rows - len(self.logits)) if self._is_kept(rows) else 0
        return self.logits[start : start + rows.stop - rows.start]

    def _is_kept(self, rows: slice) -> bool:
        return bool(rows.start >= self.num_rows - len(self.logits))


def _empty(hidden_MD: Tensor) -> Tensor:
    return hidden_MD.new_empty(len(hidden_MD), dtype=_wide(hidden_MD))


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
