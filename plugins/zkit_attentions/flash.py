"""The flash-attn packages, on a CUDA GPU: version 2 by itself, versions 3 and 4 through torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from zephyr_kit.batch import Batch
from zkit_attentions.cuda import cuda_problems
from zkit_attentions.segments import Segments
from zkit_attentions.two_pass import Kernel, Pair, Pass, Triple, check_fit, two_pass_attention
from zkit_attentions.varlen import TorchFlash

PACKAGES = {2: "flash_attn", 3: "flash_attn_interface", 4: "flash_attn.cute"}
CAPABILITIES = {2: (8, 0), 3: (9, 0), 4: (9, 0)}
INSTALLED_AS = {2: "flash-attn", 3: "flash-attn-3", 4: "flash-attn-4"}


@dataclass(frozen=True)
class Flash:
    """FlashAttention of a version that is installed (arXiv 2307.08691, 2407.08608); in bfloat16 or float16."""

    version: Literal[2, 3, 4] = 2

    def problems(self, device: torch.device) -> Sequence[str]:
        package, installed_as = PACKAGES[self.version], INSTALLED_AS[self.version]
        return cuda_problems(
            f"flash, version {self.version},", device, capability=CAPABILITIES[self.version], package=package, extra=installed_as
        )

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, batch: Batch, *, scale: float, window: int | None, dropout: float
    ) -> Tensor:
        check_fit("flash", query, batch, window=window, dropout=dropout)
        if query.device.type != "cuda":  # a rehearsal on tensors without data: what is held is the same
            return Segments().attend(query, key, value, batch, scale=scale, window=window, dropout=dropout)
        return two_pass_attention(self._kernel(), query, key, value, batch, scale=scale, window=window)

    def _kernel(self) -> Kernel:
        if self.version == 2:
            return FlashAttention2()
        from torch.nn.attention import activate_flash_attention_impl, current_flash_attention_impl

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
