"""torch's own flash attention for sequences end to end, on a CUDA GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import attention

from zkit_attentions.cuda import cuda_problems
from zkit_attentions.two_pass import FlashAttention, Kernel, Pair, Pass, Triple

_forward = torch.ops.aten._flash_attention_forward
_backward = torch.ops.aten._flash_attention_backward


@dataclass(frozen=True)
class Varlen(FlashAttention):
    """FlashAttention-2 as torch has it (arXiv 2307.08691); in bfloat16 or float16."""

    name = "varlen"

    def problems(self, device: torch.device) -> Sequence[str]:
        found = cuda_problems("varlen", device, capability=(8, 0))
        if not found and not torch.backends.cuda.is_flash_attention_available():
            found.append('[model] attention: varlen is flash attention, without which this torch was built; use "auto"')
        return found

    def kernel(self) -> Kernel:
        # `flash` may have put another version in its place, which torch does for the whole process, and older ones not at all.
        current = getattr(attention, "current_flash_attention_impl", None)
        if current is not None and current() is not None:
            attention.restore_flash_attention_impl()
        return TorchFlash()


@dataclass(frozen=True)
class TorchFlash:
    """See `two_pass.Kernel`."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, spans: Pass, *, scale: float, window: int | None) -> Pair:
        output, logsumexp, *_ = _forward(
            query, key, value, *_bounds(spans), 0.0, spans.causal, return_debug_mask=False, scale=scale, **_window(spans, window)
        )
        return output, logsumexp

    def backward(self, grad: Tensor, result: Pair, given: Triple, spans: Pass, *, scale: float, window: int | None) -> Triple:
        # What random numbers a dropout would have drawn.
        nothing = torch.zeros(2, dtype=torch.uint64, device=grad.device)
        gradients: Triple = _backward(
            grad, *given, *result, *_bounds(spans), 0.0, spans.causal, nothing, nothing, scale=scale, **_window(spans, window)
        )
        return gradients


def _bounds(spans: Pass) -> tuple[Tensor, Tensor, int, int]:
    return spans.query_bounds, spans.key_bounds, max(spans.query_lengths), max(spans.key_lengths)


def _window(spans: Pass, window: int | None) -> dict[str, int]:
    """How far a token sees to its left, beside itself; to its right nothing if causal."""
    return {"window_size_left": -1 if window is None else window - 1, "window_size_right": 0 if spans.causal else -1}
