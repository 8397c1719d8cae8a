"""Attention without masks on a CPU: parts merged by their normalisers, with torch's flash kernel.

A completion's attention is made of two parts, to itself (causal) and to its prompt (all of it);
those of all completions of a prompt to the prompt are one. Softmax over both is their average,
weighted by the exponentials of the parts' log-sum-exps. Given output and normaliser of the whole,
the kernel's backward of a part is the part's share of the gradient (arXiv 2205.14135, appendix B).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from zephyr_kit.batch import Batch

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

Lengths = Sequence[int]


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
    attended: Tensor = _Merged.apply(query, key, value, batch.lengths, batch.parents, scale)  # type: ignore[no-untyped-call]
    return attended


class _Merged(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, lengths: Lengths, parents: Lengths, scale: float) -> Tensor:
        output: Tensor
        output, normaliser = _attended(query, key, value, lengths, parents, scale)
        ctx.save_for_backward(query, key, value, output, normaliser)
        ctx.others = (lengths, parents, scale)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        return (*_gradients(grad, *ctx.saved_tensors, *ctx.others), None, None, None)


# Operators of their own: whoever goes through a step without data, as a plan does, meets one a layer, not one for every segment.


@torch.library.custom_op("zkit::merged_attention", mutates_args=())
def _attended(
    query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], parents: Sequence[int], scale: float
) -> tuple[Tensor, Tensor]:
    """Output (heads, T, size), and normaliser (heads, T)."""
    q, (k, v) = _grouped(query, len(key)), (_spread(x, len(query)) for x in (key, value))
    output, normaliser = _tokens_first(q), _normaliser(q)
    for part in _parts(lengths, parents):
        own, at = part.queries, (slice(None), slice(None), part.queries)
        found, logsumexp = _forward(q[:, :, own], k[:, :, part.keys], v[:, :, part.keys], 0.0, part.causal, scale=scale)
        if not part.causal:
            found, logsumexp = _merge(output[at], normaliser[at], found, logsumexp)
        output[at], normaliser[at] = found, logsumexp
    return output.flatten(0, 1), normaliser.flatten(0, 1)


@torch.library.custom_op("zkit::merged_attention_backward", mutates_args=())
def _gradients(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    normaliser: Tensor,
    lengths: Sequence[int],
    parents: Sequence[int],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Of query, key and value."""
    q, (k, v) = _grouped(query, len(key)), (_spread(x, len(query)) for x in (key, value))
    grad, output, normaliser = (_grouped(x, len(key)) for x in (grad, output, normaliser))
    to_query, (to_key, to_value) = _tokens_first(q), (_tokens_first(x[:, :1])[:, 0] for x in (k, v))
    for part in _parts(lengths, parents):
        own, seen = part.queries, part.keys
        pieces = [x[:, :, own] for x in (grad, q)], [x[:, :, seen] for x in (k, v)], [x[:, :, own] for x in (output, normaliser)]
        by_query, by_key, by_value = _backward(*itertools.chain(*pieces), 0.0, part.causal, scale=scale)
        for total, piece in ((to_query[:, :, own], by_query), (to_key[:, seen], by_key.sum(1)), (to_value[:, seen], by_value.sum(1))):
            # Every token is first met in the causal part of its own segment.
            total.copy_(piece) if part.causal else total.add_(piece)
    return to_query.flatten(0, 1), to_key, to_value


@_attended.register_fake
def _(query: Tensor, key: Tensor, *_others: Any) -> tuple[Tensor, Tensor]:
    q = _grouped(query, len(key))
    return _tokens_first(q).flatten(0, 1), _normaliser(q).flatten(0, 1)


@_gradients.register_fake
def _(_grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_others: Any) -> tuple[Tensor, Tensor, Tensor]:
    of_query, of_key, of_value = (_tokens_first(_grouped(x, len(key))).flatten(0, 1) for x in (query, key, value))
    return of_query, of_key, of_value


@register_flop_formula(torch.ops.zkit.merged_attention)
def _flops(query: Sequence[int], _key: Any, _value: Any, lengths: Lengths, parents: Lengths, *_others: Any, **_result: Any) -> int:
    return 2 * _flops_of_product(query, lengths, parents)


@register_flop_formula(torch.ops.zkit.merged_attention_backward)
def _flops_of_gradients(
    _grad: Any, query: Sequence[int], _k: Any, _v: Any, _o: Any, _n: Any, lengths: Lengths, parents: Lengths, *_others: Any, **_result: Any
) -> int:
    return 5 * _flops_of_product(query, lengths, parents)


def _flops_of_product(query: Sequence[int], lengths: Lengths, parents: Lengths) -> int:
    """Of QK', over all pairs of tokens that see each other."""
    heads, _, size = query
    num_pairs = (_length(part.queries) * _length(part.keys) // (2 if part.causal else 1) for part in _parts(lengths, parents))
    return 2 * heads * size * sum(num_pairs)


def _length(span: slice) -> int:
    return int(span.stop - span.start)


def _merge(output: Tensor, normaliser: Tensor, found: Tensor, logsumexp: Tensor) -> tuple[Tensor, Tensor]:
    """The softmax over the keys of both."""
    together = torch.logaddexp(normaliser, logsumexp)
    mine, theirs = ((part - together).exp_()[..., None] for part in (normaliser, logsumexp))
    return output * mine + found * theirs, together


def _parts(lengths: Lengths, parents: Lengths) -> Iterator[_Part]:
    """First each segment by itself, then what prompts are to their completions."""
    ends = list(itertools.accumulate(lengths))
    spans = [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]
    yield from (_Part(span, span, causal=True) for span in spans if span.stop > span.start)
    for parent, group in itertools.groupby(range(len(spans)), parents.__getitem__):
        members = list(group)
        queries = slice(spans[members[0]].start, spans[members[-1]].stop)
        if parent >= 0 and queries.stop > queries.start:
            yield _Part(queries, spans[parent], causal=False)


def _longest(batch: Batch) -> int:
    return max(length + (batch.lengths[parent] if parent >= 0 else 0) for length, parent in zip(batch.lengths, batch.parents, strict=True))


def _normaliser(q: Tensor) -> Tensor:
    return q.new_empty(q.shape[:-1], dtype=torch.promote_types(q.dtype, torch.float32))


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
