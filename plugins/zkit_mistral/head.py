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

from zkit_mistral.softmax import Softmax, softmax_for

CHUNK = {"cpu": 1 << 23, "cuda": 1 << 25}
"""Logits computed at once; 32 MiB in float32 stay in a processor's cache."""
TILE = {"cpu": 1, "cuda": 128}
"""Rows of a chunk are a multiple of this where they can: the tiles in which a GPU multiplies."""
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


@torch.no_grad()
def is_likeliest(hidden_MD: Tensor, weight_VD: Tensor, target_M: Tensor) -> Tensor:
    """Whether each target has the highest logit, (M,)."""
    rows = _rows_at_once(hidden_MD, weight_VD)
    likeliest_M = torch.empty_like(target_M)
    for first in range(0, len(target_M), rows):
        part = slice(first, first + rows)
        likeliest_M[part] = (hidden_MD[part] @ weight_VD.T).argmax(-1)
    return likeliest_M == target_M


class _TrainedHead(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_MD: Tensor, weight_VD: Tensor, target_M: Tensor, keep: bool) -> Tensor:  # noqa: FBT001  torch's signature
        logp_M, normaliser_M, total_M = (_empty(hidden_MD) for _ in range(3))
        ctx.buffer = _Buffer.of(hidden_MD, weight_VD, kept=keep)
        for rows, logits in ctx.buffer.chunks(hidden_MD, weight_VD):
            logp_M[rows], normaliser_M[rows], total_M[rows] = ctx.buffer.softmax.normalise(logits, target_M[rows])
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
        for rows, missed in buffer.missed(hidden_MD, weight_VD, target_M, logp_M, normaliser_M, total_M):
            if grad_hidden is not None:
                torch.mm(missed, weight_VD, out=grad_hidden[rows])
            if grad_weight is not None:
                _subtract_product(grad_weight, missed.T, scaled_MD[rows])
        if grad_hidden is not None:
            grad_hidden *= -grad_M[:, None].to(grad_hidden.dtype)
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight_VD.dtype), None, None


class _FrozenHead(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_MD: Tensor, weight_VD: Tensor, target_M: Tensor, _keep: bool) -> Tensor:  # noqa: FBT001  torch's signature
        logp_M, missed_MD = _empty(hidden_MD), torch.empty_like(hidden_MD)
        buffer = _Buffer.of(hidden_MD, weight_VD, kept=False)
        for rows, logits in buffer.chunks(hidden_MD, weight_VD):
            logp, normaliser, total = buffer.softmax.normalise(logits, target_M[rows])
            missed = buffer.softmax.missed_of_used(logits, target_M[rows], logp, normaliser, total)
            logp_M[rows] = logp
            torch.mm(missed, weight_VD, out=missed_MD[rows])
        ctx.save_for_backward(missed_MD)
        return logp_M

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_M: Tensor) -> tuple[Tensor, None, None, None]:
        (missed_MD,) = ctx.saved_tensors
        return missed_MD * -grad_M[:, None].to(missed_MD.dtype), None, None, None


def _product(left: Tensor, right: Tensor, place: Tensor) -> Tensor:
    """Multiply into a place, which may be wider than the matrices: what they add up to is not rounded then."""
    if place.dtype == left.dtype:
        return torch.mm(left, right, out=place)
    wider: Tensor = torch.ops.aten.mm.dtype_out(left, right, place.dtype, out=place)
    return wider


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
    softmax: Softmax

    @staticmethod
    def of(hidden_MD: Tensor, weight_VD: Tensor, *, kept: bool) -> _Buffer:
        num_rows, vocabulary = len(hidden_MD), weight_VD.shape[0]
        chunk, held = _rows_at_once(hidden_MD, weight_VD), max(1, BUFFER // vocabulary)
        # Whole chunks, so that the last ones end with the last row.
        held = held // chunk * chunk if kept else chunk
        softmax = softmax_for(hidden_MD)
        logits = hidden_MD.new_empty(min(held, num_rows), vocabulary, dtype=softmax.logits_type(hidden_MD))
        return _Buffer(logits, chunk, num_rows, kept, softmax)

    def chunks(self, hidden_MD: Tensor, weight_VD: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """The logits of some rows after others."""
        for rows in self._rows():
            yield rows, _product(hidden_MD[rows], weight_VD.T, self._place(rows))

    def missed(
        self, hidden_MD: Tensor, weight_VD: Tensor, target_M: Tensor, logp_M: Tensor, normaliser_M: Tensor, total_M: Tensor
    ) -> Iterator[tuple[slice, Tensor]]:
        """Give p - onehot(target) of some rows before others: of the last ones by what is still there of them."""
        for rows in reversed(list(self._rows())):
            place, known = self._place(rows), (target_M[rows], logp_M[rows], normaliser_M[rows])
            if self.kept and self._is_kept(rows):
                yield rows, self.softmax.missed_of_used(place, *known, total_M[rows])
            else:
                yield rows, self.softmax.missed(_product(hidden_MD[rows], weight_VD.T, place), *known)

    def _rows(self) -> Iterator[slice]:
        first = self.num_rows % self.chunk
        ends = [*([first] if first else []), *range(first + self.chunk, self.num_rows + 1, self.chunk)]
        return (slice(max(0, end - self.chunk), end) for end in ends)

    def _place(self, rows: slice) -> Tensor:
        start = rows.start - (self.num_rows - len(self.logits)) if self._is_kept(rows) else 0
        return self.logits[start : start + rows.stop - rows.start]

    def _is_kept(self, rows: slice) -> bool:
        return bool(rows.start >= self.num_rows - len(self.logits))


def _rows_at_once(hidden_MD: Tensor, weight_VD: Tensor) -> int:
    kind = "cpu" if hidden_MD.device.type == "cpu" else "cuda"
    rows = max(1, CHUNK[kind] // len(weight_VD))
    return rows // TILE[kind] * TILE[kind] or rows


def _empty(hidden_MD: Tensor) -> Tensor:
    return hidden_MD.new_empty(len(hidden_MD), dtype=_wide(hidden_MD))


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
