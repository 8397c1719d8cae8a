"""The flash-attn packages, on a CUDA GPU: version 2 by itself, versions 3 and 4 through torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from zkit_attentions.cuda import cuda_problems
from zkit_attentions.two_pass import FlashAttention, Kernel, Pair, Pass, Triple
from zkit_attentions.varlen import TorchFlash

PACKAGES = {2: "flash_attn", 3: "flash_attn_interface", 4: "flash_attn.cute"}
CAPABILITIES = {2: (8, 0), 3: (9, 0), 4: (9, 0)}
HIGHEST = {3: 9, 4: 10}
"""What torch lets them run on."""
HOPPERS = "'git+https://github.com/Dao-AILab/flash-attention.git#subdirectory=hopper'"
INSTALLED_AS = {2: "flash-attn", 3: HOPPERS, 4: "flash-attn-4"}


@dataclass(frozen=True)
class Flash(FlashAttention):
    """FlashAttention of a version that is installed (arXiv 2307.08691, 2407.08608); in bfloat16 or float16."""

    name = "flash"

    version: Literal[2, 3, 4] = 2

    def problems(self, device: torch.device) -> Sequence[str]:
        number = self.version
        return cuda_problems(
            f"flash, version {number},",
            device,
            capability=CAPABILITIES[number],
            highest=HIGHEST.get(number),
            package=PACKAGES[number],
            extra=INSTALLED_AS[number],
        )

    def kernel(self) -> Kernel:
        if self.version == 2:
            return FlashAttention2()
        from torch.nn.attention import activate_flash_attention_impl, current_flash_attention_impl

        # For the whole process: torch has one at a time.
        if current_flash_attention_impl() != f"FA{self.version}":
            activate_flash_attention_impl(f"FA{self.version}")
        return TorchFlash()


@dataclass(frozen=True)
class FlashAttention2:
    """See `two_pass.Kernel`."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, spans: Pass, *, scale: float, window: int | None) -> Pair:
        from flash_attn.flash_attn_interface import _flash_attn_varlen_forward

        output, logsumexp, *_ = _flash_attn_varlen_forward(query, key, value, **_settings(spans, scale, window))
        return output, logsumexp

    def backward(self, grad: Tensor, result: Pair, given: Triple, spans: Pass, *, scale: float, window: int | None) -> Triple:
        from flash_attn.flash_attn_interface import _flash_attn_varlen_backward

        by_query, by_key, by_value = (torch.empty_like(x) for x in given)
        deterministic = torch.are_deterministic_algorithms_enabled()
        _flash_attn_varlen_backward(
            grad, *given, *result, by_query, by_key, by_value, **_settings(spans, scale, window), deterministic=deterministic
        )
        return by_query, by_key, by_value


def _settings(spans: Pass, scale: float, window: int | None) -> dict[str, object]:
    return {
        "cu_seqlens_q": spans.query_bounds,
        "cu_seqlens_k": spans.key_bounds,
        "max_seqlen_q": max(spans.query_lengths),
        "max_seqlen_k": max(spans.key_lengths),
        "dropout_p": 0.0,
        "softmax_scale": scale,
        "causal": spans.causal,
        "window_size_left": -1 if window is None else window - 1,
        "window_size_right": 0 if spans.causal else -1,
        "softcap": 0.0,
        "alibi_slopes": None,
    }
