"""Attention with the whole mask: slow, simple, and right by definition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from zephyr_kit.batch import Batch, visible


@dataclass(frozen=True)
class Dense:
    """Scaled dot-product attention under the (T, T) mask `visible`."""

    def problems(self, device: torch.device) -> Sequence[str]:
        return []

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, batch: Batch, *, scale: float, window: int | None, dropout: float
    ) -> Tensor:
        mask = visible(batch, window=window)
        groups = query.shape[0] // key.shape[0]
        key, value = key.repeat_interleave(groups, 0), value.repeat_interleave(groups, 0)
        # With the batch axis back: the fast kernels look for four axes.
        attended = scaled_dot_product_attention(query[None], key[None], value[None], attn_mask=mask, scale=scale, dropout_p=dropout)
        return attended[0]
