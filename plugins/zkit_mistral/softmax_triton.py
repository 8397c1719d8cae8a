"""The same in Triton: one pass over the logits each, which stay in float32 between the products of matrices."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096
"""Logits that a program looks at together."""


@dataclass(frozen=True)
class TritonSoftmax:
    """See `softmax.Softmax`."""

    dtype: torch.dtype
    """Of the hidden states."""

    def logits_type(self, hidden: Tensor) -> torch.dtype:
        return torch.float32

    def normalise(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logp, normaliser = (logits.new_empty(len(logits)) for _ in range(2))
        _normalise[(len(logits),)](logits, target, logp, normaliser, logits.stride(0), logits.shape[1], BLOCK=BLOCK)
        return logp, normaliser, normaliser

    def missed(self, logits: Tensor, target: Tensor, logp: Tensor, normaliser: Tensor) -> Tensor:
        result = torch.empty(logits.shape, dtype=self.dtype, device=logits.device)
        strides, hit = (logits.stride(0), result.stride(0)), logp.expm1()
        _missed[(len(logits),)](logits, target, hit, normaliser, result, *strides, logits.shape[1], BLOCK=BLOCK)
        return result

    def missed_of_used(self, used: Tensor, target: Tensor, logp: Tensor, normaliser: Tensor, total: Tensor) -> Tensor:
        return self.missed(used, target, logp, normaliser)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _normalise(logits, target, logp, normaliser, stride, size, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """One row: log-sum-exp by a running maximum (arXiv 1805.02867), and the target's logit less it."""
    row = tl.program_id(0).to(tl.int64)
    place = logits + row * stride
    highest, total = -float("inf"), 0.0
    for first in range(0, size, BLOCK):
        at = first + tl.arange(0, BLOCK)
        x = tl.load(place + at, mask=at < size, other=-float("inf"))
        higher = tl.maximum(highest, tl.max(x, 0))
        total = total * tl.exp(highest - higher) + tl.sum(tl.exp(x - higher), 0)
        highest = higher
    found = highest + tl.log(total)
    tl.store(normaliser + row, found)
    tl.store(logp + row, tl.load(place + tl.load(target + row)) - found)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _missed(logits, target, hit, normaliser, result, stride, result_stride, size, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """One row: softmax, and in the target's place what is given as its p - 1."""
    row = tl.program_id(0).to(tl.int64)
    aim, less, its_hit = tl.load(target + row), tl.load(normaliser + row), tl.load(hit + row)
    for first in range(0, size, BLOCK):
        at = first + tl.arange(0, BLOCK)
        x = tl.load(logits + row * stride + at, mask=at < size, other=0.0)
        p = tl.where(at == aim, its_hit, tl.exp(x - less))
        tl.store(result + row * result_stride + at, p.to(result.dtype.element_ty), mask=at < size)
