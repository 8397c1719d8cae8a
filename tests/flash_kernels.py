"""Flash kernels as slow mathematics, for a CPU: what torch, flash-attn and xformers compute on a GPU."""

from dataclasses import dataclass

import torch
from torch import Tensor
from zkit_attentions.two_pass import Pair, Pass, Triple


@dataclass(frozen=True)
class Plain:
    """See `two_pass.Kernel`: one softmax for each sequence."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, spans: Pass, *, scale: float, window: int | None) -> Pair:
        scores = _scores(query, key, spans, scale, window)
        logsumexp = scores.logsumexp(-1)
        return _mixed((scores - logsumexp[..., None]).exp(), value, query.shape[1]), logsumexp

    def backward(self, grad: Tensor, result: Pair, given: Triple, spans: Pass, *, scale: float, window: int | None) -> Triple:
        """By the formulas of FlashAttention (arXiv 2205.14135, appendix B.4), from output and normaliser as they are given."""
        (output, logsumexp), (query, key, value) = result, given
        heads, groups = query.shape[1], query.shape[1] // key.shape[1]
        p = (_scores(query, key, spans, scale, window) - logsumexp[..., None]).exp()
        by_p = torch.einsum("qhd,khd->hqk", grad, value.repeat_interleave(groups, 1))
        by_scores = p * (by_p - (grad * output).sum(-1).T[..., None]) * scale
        by_query = torch.einsum("hqk,khd->qhd", by_scores, key.repeat_interleave(groups, 1))
        by_key, by_value = (torch.einsum("hqk,qhd->khd", x, y) for x, y in ((by_scores, query), (p, grad)))
        return by_query, *(x.unflatten(1, (heads // groups, groups)).sum(2) for x in (by_key, by_value))


def _scores(query: Tensor, key: Tensor, spans: Pass, scale: float, window: int | None) -> Tensor:
    groups = query.shape[1] // key.shape[1]
    scores = torch.einsum("qhd,khd->hqk", query, key.repeat_interleave(groups, 1)) * scale
    return scores.masked_fill(~_seen(spans, len(query), len(key), window), float("-inf"))


def _seen(spans: Pass, num_queries: int, num_keys: int, window: int | None) -> Tensor:
    """As the kernels read their bounds."""
    of_query, of_key = (
        torch.bucketize(torch.arange(count), bounds[1:], right=True)
        for count, bounds in ((num_queries, spans.query_bounds), (num_keys, spans.key_bounds))
    )
    seen = of_query[:, None] == of_key[None, :]
    distance = torch.arange(num_queries)[:, None] - torch.arange(num_keys)[None, :]
    if spans.causal:
        seen &= distance >= 0
    return seen if window is None else seen & (distance < window)


def _mixed(p: Tensor, value: Tensor, heads: int) -> Tensor:
    return torch.einsum("hqk,khd->qhd", p, value.repeat_interleave(heads // value.shape[1], 1))
