"""Attention without masks on a CPU: parts merged by their normalisers, with torch's flash kernel.

A completion's attention is made of two parts, to itself (causal) and to its prompt (all of it);
those of all completions of a prompt to the prompt are one. Softmax over both is their average,
weighted by the exponentials of the parts' log-sum-exps. Given output and normaliser of the whole,
the kernel's backward of a part is the part's share of the gradient (arXiv 2205.14135, appendix B).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zephyr_kit.batch import Batch

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True, slots=True)
class _Part:
    """Queries that see keys: causally if they are the same tokens, else all of them."""

    queries: slice
    keys: slice
    causal: bool


def fits(query: Tensor, batch: Batch, *, window: int | None, dropout: float) -> bool:
    """Whether the kernel can: on a CPU, without dropout, and if no token is beyond the window."""
    return query.device.type == "cpu" and not dropout and (window is None or _longest(batch) <= window)


def merged_attention(query: Tensor, key: Tensor, value: Tensor, batch: Batch, *, scale: float) -> Tensor:
    """`query` (heads, T, size), `key` and `value` (key-value heads, T, size) -> (heads, T, size)."""
    attended: Tensor = _Merged.apply(query, key, value, list(_parts(batch)), scale)  # type: ignore[no-untyped-call]
    return attended


class _Merged(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, parts: list[_Part], scale: float) -> Tensor:
        q, (k, v) = _grouped(query, len(key)), (_spread(x, len(query)) for x in (key, value))
        output = _tokens_first(q)
        normaliser = q.new_empty(q.shape[:-1], dtype=torch.promote_types(q.dtype, torch.float32))
        for part in parts:
            own, at = part.queries, (slice(None), slice(None), part.queries)
            found, logsumexp = _forward(q[:, :, own], k[:, :, part.keys], v[:, :, part.keys], 0.0, part.causal, scale=scale)
            if not part.causal:
                found, logsumexp = _merge(output[at], normaliser[at], found, logsumexp)
            output[at], normaliser[at] = found, logsumexp
        ctx.save_for_backward(query, key, value, output, normaliser)
        ctx.parts, ctx.scale = parts, scale
        return output.flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, output, normaliser = ctx.saved_tensors
        q, (k, v) = _grouped(query, len(key)), (_spread(x, len(query)) for x in (key, value))
        grad, to_query = _grouped(grad, len(key)), _tokens_first(q)
        to_key, to_value = (_tokens_first(x[:, :1])[:, 0] for x in (k, v))
        for part in ctx.parts:
            own, seen = part.queries, part.keys
            pieces = [x[:, :, own] for x in (grad, q)], [x[:, :, seen] for x in (k, v)], [x[:, :, own] for x in (output, normaliser)]
            by_query, by_key, by_value = _backward(*itertools.chain(*pieces), 0.0, part.causal, scale=ctx.scale)
            for total, piece in ((to_query[:, :, own], by_query), (to_key[:, seen], by_key.sum(1)), (to_value[:, seen], by_value.sum(1))):
                # Every token is first met in the causal part of its own segment.
                total.copy_(piece) if part.causal else total.add_(piece)
        return to_query.flatten(0, 1), to_key, to_value, None, None


def _merge(output: Tensor, normaliser: Tensor, found: Tensor, logsumexp: Tensor) -> tuple[Tensor, Tensor]:
    """The softmax over the keys of both."""
    together = torch.logaddexp(normaliser, logsumexp)
    mine, theirs = ((part - together).exp_()[..., None] for part in (normaliser, logsumexp))
    return output * mine + found * theirs, together


def _parts(batch: Batch) -> Iterator[_Part]:
    """First each segment by itself, then what prompts are to their completions."""
    ends = list(itertools.accumulate(batch.lengths))
    spans = [slice(end - length, end) for end, length in zip(ends, batch.lengths, strict=True)]
    yield from (_Part(span, span, causal=True) for span in spans if span.stop > span.start)
    for parent, group in itertools.groupby(range(len(spans)), batch.parents.__getitem__):
        members = list(group)
        queries = slice(spans[members[0]].start, spans[members[-1]].stop)
        if parent >= 0 and queries.stop > queries.start:
            yield _Part(queries, spans[parent], causal=False)


def _longest(batch: Batch) -> int:
    return max(length + (batch.lengths[parent] if parent >= 0 else 0) for length, parent in zip(batch.lengths, batch.parents, strict=True))


def _grouped(x: Tensor, key_heads: int) -> Tensor:
    """(heads, T, size) as (key-value heads, group, T, size)."""
    return x.view(key_heads, -1, *x.shape[1:])


def _spread(x: Tensor, heads: int) -> Tensor:
    """(key-value heads, T, size) for each of a group of query heads, without a copy."""
    return x[:, None].expand(-1, heads // len(x), -1, -1)


def _tokens_first(like: Tensor) -> Tensor:
    """An empty (key-value heads, group, T, size) whose tokens come first in memory, as the layers around it have them."""
    heads, group, tokens, size = like.shape
    return like.new_empty(tokens, heads, group, size).permute(1, 2, 0, 3)
