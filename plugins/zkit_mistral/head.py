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

CHUNK = {"cpu": 1 << 23, "cuda": 1 << 25}
"""Logits computed at once; 32 MiB in float32 stay in a processor's cache."""
BUFFER = 1 << 25
"""Logits held at once."""


def target_logp(hidden_MD: Tensor, weight_VD: Tensor, target_M: Tensor) -> Tensor:
    """Give log softmax(hidden weight^T)[target], (M,), in float32 or better; never holds (M, V) logits.

    The gradient is softmax's: d logp / d logits = onehot(target) - p. For a trained weight, p is
    computed anew in the backward pass where it is no longer in the buffer. With a frozen one all
    that is ever needed of p is the weights that it expects, p weight, (M, D): they are taken while
    p is at hand, and the backward pass multiplies no matrices.
    """
    frozen = torch.is_grad_enabled() and hidden_MD.requires_grad and not weight_VD.requires_grad
    logp_M: Tensor = (_FrozenHead if frozen else _TrainedHead).apply(hidden_MD, weight_VD, target_M)  # type: ignore[no-untyped-call]
    return logp_M


class _TrainedHead(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_MD: Tensor, weight_VD: Tensor, target_M: Tensor) -> Tensor:
        logp_M, normaliser_M, total_M = (_empty(hidden_MD) for _ in range(3))
        ctx.buffer = _Buffer.of(hidden_MD, weight_VD)
        for rows, logits in ctx.buffer.chunks(hidden_MD, weight_VD):
            logp_M[rows], normaliser_M[rows], total_M[rows] = _normalise(logits, target_M[rows])
        ctx.save_for_backward(hidden_MD, weight_VD, target_M, normaliser_M, total_M)
        return logp_M

    @staticmethod
    def backward(ctx: Any, grad_M: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        hidden_MD, weight_VD, target_M, normaliser_M, total_M = ctx.saved_tensors
        to_hidden, to_weight = ctx.needs_input_grad[:2]
        expected_MD = torch.empty_like(hidden_MD) if to_hidden else None
        grad_weight = torch.zeros_like(weight_VD, dtype=_wide(hidden_MD)) if to_weight else None
        # The factor of each row goes into the (M, D) sides of the products, not into the chunk.
        scaled_MD = hidden_MD * grad_M[:, None].to(hidden_MD.dtype)
        # A second backward pass finds nothing in the buffer that it could use.
        buffer, ctx.buffer = ctx.buffer or _Buffer.of(hidden_MD, weight_VD, kept=False), None
        for rows, p in buffer.probabilities(hidden_MD, weight_VD, normaliser_M, total_M):
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
        for rows, logits in _Buffer.of(hidden_MD, weight_VD, kept=False).chunks(hidden_MD, weight_VD):
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


@dataclass(frozen=True, slots=True)
class _Buffer:
    """Logits of a chunk of rows at a time; the last rows each keep a place of their own, the others use the first one in turn."""

    logits: Tensor
    chunk: int
    num_rows: int
    kept: bool

    @staticmethod
    def of(hidden_MD: Tensor, weight_VD: Tensor, *, kept: bool = True) -> _Buffer:
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
