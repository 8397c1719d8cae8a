"""Packed attention by kernels for sequences end to end: in one pass, or in two where prompts are shared.

The first pass is every segment by itself, causally; the second all completions to their prompts,
whole. Softmax over both is their average, weighted by the exponentials of their log-sum-exps;
given output and log-sum-exp of the whole, a kernel's backward of a pass is that pass's share of
the gradient (arXiv 2205.14135, appendix B).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeAlias

import torch
from torch import Tensor

from zephyr_kit import ZkitError
from zephyr_kit.batch import Batch
from zkit_attentions.segments import Segments

Pair: TypeAlias = tuple[Tensor, Tensor]
Triple: TypeAlias = tuple[Tensor, Tensor, Tensor]
SHORT = (torch.bfloat16, torch.float16)
LARGEST_SIZE, MULTIPLE = 256, 8
"""Of a head, for flash kernels."""


@dataclass(frozen=True, slots=True)
class Pass:
    """Sequences of queries, each of which sees the sequence of keys of the same number."""

    queries: slice
    """Where they are in the row."""
    keys: slice
    query_bounds: Tensor
    """Where each begins among them, and where the last ends, (sequences + 1,), int32, on the device."""
    key_bounds: Tensor
    query_lengths: Sequence[int]
    key_lengths: Sequence[int]
    causal: bool


class Kernel(Protocol):
    """Attention of sequences end to end; tokens first: (T, heads, size), `logsumexp` (heads, T) in float32."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, spans: Pass, *, scale: float, window: int | None) -> Pair:
        """Output and `logsumexp`."""
        ...

    def backward(self, grad: Tensor, result: Pair, given: Triple, spans: Pass, *, scale: float, window: int | None) -> Triple:
        """Gradients by query, key and value, for this output and `logsumexp`, be they of more keys than these."""
        ...


class FlashAttention:
    """An attention by a kernel of flash attention, in bfloat16 or float16."""

    name: ClassVar[str]

    def kernel(self) -> Kernel:
        """Asked for on a GPU alone."""
        raise NotImplementedError

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, batch: Batch, *, scale: float, window: int | None, dropout: float
    ) -> Tensor:
        """See `protocols.Attention`."""
        if why := misfit(query, batch, window=window, dropout=dropout):
            raise ZkitError(f'[model] attention: {self.name} {why}; use "auto"')
        if query.device.type != "cuda":  # a rehearsal on tensors without data: what is held is the same
            return Segments().attend(query, key, value, batch, scale=scale, window=window, dropout=dropout)
        return two_pass_attention(self.kernel(), query, key, value, batch, scale=scale, window=window)


def two_pass_attention(
    kernel: Kernel, query: Tensor, key: Tensor, value: Tensor, batch: Batch, *, scale: float, window: int | None
) -> Tensor:
    """`query` (heads, T, size), `key` and `value` (key-value heads, T, size) -> (heads, T, size)."""
    attended: Tensor = _TwoPass.apply(query, key, value, kernel, passes(batch), scale, window)  # type: ignore[no-untyped-call]
    return attended


def misfit(query: Tensor, batch: Batch, *, window: int | None, dropout: float) -> str:
    """Why flash kernels cannot; empty if they can."""
    size = query.shape[-1]
    if query.dtype not in SHORT:
        return f"computes in bfloat16 or float16, not in {str(query.dtype).removeprefix('torch.')}"
    if size > LARGEST_SIZE or size % MULTIPLE:
        return f"takes heads of a multiple of {MULTIPLE} up to {LARGEST_SIZE}, not of {size}"
    if dropout:
        return f"has no dropout, and the model's attention_dropout is {dropout}"
    if window is not None and max(batch.parents, default=-1) >= 0 and _longest(batch) > window:
        return f"cannot share a prompt beyond the model's window of {window} tokens; the longest of the row has {_longest(batch)}"
    return ""


def passes(batch: Batch) -> Sequence[Pass]:
    """The passes of a row, made once for all layers."""
    name = (__name__, "passes")
    if name not in batch.prepared:
        batch.prepared[name] = tuple(_passes(batch))
    found: Sequence[Pass] = batch.prepared[name]
    return found


def _passes(batch: Batch) -> Iterator[Pass]:
    device, row = batch.tokens_T.device, slice(0, sum(batch.lengths))
    bounds = _bounds(batch.lengths, device)
    yield Pass(row, row, bounds, bounds, batch.lengths, batch.lengths, causal=True)
    num_shared = max(batch.parents, default=-1) + 1
    groups = [0] * num_shared
    for length, parent in zip(batch.lengths, batch.parents, strict=True):
        if parent >= 0:
            groups[parent] += length
    if sum(groups):
        first = sum(batch.lengths[:num_shared])
        queries, keys = slice(first, first + sum(groups)), slice(0, first)
        yield Pass(queries, keys, _bounds(groups, device), bounds[: num_shared + 1], groups, batch.lengths[:num_shared], causal=False)


def _bounds(lengths: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32).to(device, non_blocking=True)


class _TwoPass(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, kernel: Kernel, spans: Sequence[Pass], scale: float, window: int | None
    ) -> Tensor:
        q, k, v = (x.transpose(0, 1).contiguous() for x in (query, key, value))
        output, logsumexp = kernel.forward(q, k, v, spans[0], scale=scale, window=window)
        if len(spans) > 1:
            # Whoever keeps a kernel's results for the backward pass must not find them changed.
            output, logsumexp = output.clone(), logsumexp.clone()
        for more in spans[1:]:
            at, seen = more.queries, more.keys
            _merge(output[at], logsumexp[:, at], *kernel.forward(q[at], k[seen], v[seen], more, scale=scale, window=None))
        ctx.save_for_backward(q, k, v, output, logsumexp)
        ctx.kernel, ctx.spans, ctx.scale, ctx.window = kernel, spans, scale, window
        return output.transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, output, logsumexp = ctx.saved_tensors
        kernel, grad = ctx.kernel, grad.transpose(0, 1).contiguous()
        totals = kernel.backward(grad, (output, logsumexp), (q, k, v), ctx.spans[0], scale=ctx.scale, window=ctx.window)
        for more in ctx.spans[1:]:
            at, seen = more.queries, more.keys
            result, given = (output[at], logsumexp[:, at].contiguous()), (q[at], k[seen], v[seen])
            pieces = kernel.backward(grad[at], result, given, more, scale=ctx.scale, window=None)
            for total, piece, place in zip(totals, pieces, (at, seen, seen), strict=True):
                total[place] += piece
        by_query, by_key, by_value = (x.transpose(0, 1) for x in totals)
        return by_query, by_key, by_value, None, None, None, None


def _merge(output: Tensor, logsumexp: Tensor, found: Tensor, its_logsumexp: Tensor) -> None:
    """Put the softmax over the keys of both in the place of the first."""
    share = (its_logsumexp - logsumexp).sigmoid_()
    logsumexp.copy_(torch.logaddexp(logsumexp, its_logsumexp))
    # The weight is rounded as the outputs are: its error is no larger than theirs.
    output.lerp_(found, share.T[..., None].to(output.dtype))


def _longest(batch: Batch) -> int:
    return max(length + (batch.lengths[parent] if parent >= 0 else 0) for length, parent in zip(batch.lengths, batch.parents, strict=True))
