"""xformers' memory-efficient attention with its block-diagonal biases, on a CUDA GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from zkit_attentions.cuda import cuda_problems
from zkit_attentions.two_pass import FlashAttention, Kernel, Pair, Pass, Triple


@dataclass(frozen=True)
class Xformers(FlashAttention):
    """xformers' choice among its kernels; in bfloat16 or float16."""

    name = "xformers"

    def problems(self, device: torch.device) -> Sequence[str]:
        return cuda_problems("xformers", device, capability=(8, 0), package="xformers", extra="'zephyr-kit[xformers]'")

    def kernel(self) -> Kernel:
        return XformersFlash()


@dataclass(frozen=True)
class XformersFlash:
    """See `two_pass.Kernel`."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, spans: Pass, *, scale: float, window: int | None) -> Pair:
        from xformers.ops import fmha

        wide = (_spread(x, query.shape[1]) for x in (key, value))
        output, logsumexp = fmha.memory_efficient_attention_forward_requires_grad(
            query[None], *wide, attn_bias=_bias(spans, window), scale=scale
        )
        return output[0], logsumexp[0]

    def backward(self, grad: Tensor, result: Pair, given: Triple, spans: Pass, *, scale: float, window: int | None) -> Triple:
        from xformers.ops import fmha

        (output, logsumexp), (query, *pair) = result, given
        wide = (_spread(x, query.shape[1]) for x in pair)
        by_query, by_key, by_value = fmha.memory_efficient_attention_backward(
            grad[None], output[None], logsumexp[None], query[None], *wide, attn_bias=_bias(spans, window), scale=scale
        )
        heads = pair[0].shape[1]
        return by_query[0], _gathered(by_key[0], heads), _gathered(by_value[0], heads)


def _bias(spans: Pass, window: int | None) -> Any:
    from xformers.ops.fmha import attn_bias

    queries = _lengths(spans.query_lengths, spans.query_bounds)
    keys = _lengths(spans.key_lengths, spans.key_bounds)
    if not spans.causal:
        return attn_bias.BlockDiagonalMask(q_seqinfo=queries, k_seqinfo=keys)
    causal = attn_bias.BlockDiagonalCausalMask(q_seqinfo=queries, k_seqinfo=keys)
    return causal if window is None else causal.make_local_attention(window)


def _lengths(lengths: Sequence[int], bounds: Tensor) -> Any:
    """As xformers holds them: on the host and on the device, where they are already."""
    from xformers.ops.fmha.attn_bias import _SeqLenInfo

    return _SeqLenInfo(seqstart=bounds, max_seqlen=max(lengths), min_seqlen=min(lengths), seqstart_py=[0, *accumulate(lengths)])


def _spread(x: Tensor, heads: int) -> Tensor:
    """(T, key-value heads, size) once for each query head, with a batch axis."""
    return x.repeat_interleave(heads // x.shape[1], 1)[None]


def _gathered(x: Tensor, heads: int) -> Tensor:
    """The sum over the query heads of each of so many key-value heads."""
    total: Tensor = x.view(len(x), heads, -1, x.shape[-1]).sum(2)
    return total
