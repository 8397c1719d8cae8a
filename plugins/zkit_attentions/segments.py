"""Attention one segment at a time: no (T, T) mask, and no kernel but torch's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from zephyr_kit.batch import Batch


@dataclass(frozen=True)
class Segments:
    """Scaled dot-product attention of each segment to itself, and to its parent if it has one."""

    def problems(self, device: torch.device) -> Sequence[str]:
        return []

    def attend(self, query: Tensor, key: Tensor, value: Tensor, batch: Batch, *, scale: float, window: int | None, dropout: float) -> Tensor:
        groups = query.shape[0] // key.shape[0]
        key, value = key.repeat_interleave(groups, 0), value.repeat_interleave(groups, 0)
        starts = [0, *accumulate(batch.lengths)]
        spans = [slice(start, start + length) for start, length in zip(starts, batch.lengths, strict=False)]
        pieces = []
        for span, parent in zip(spans, batch.parents, strict=True):
            seen = [spans[parent], span] if parent >= 0 else [span]
            keys, values = (torch.cat([x[:, s] for s in seen], 1) if len(seen) > 1 else x[:, span] for x in (key, value))
            mask = _mask(span.stop - span.start, keys.shape[1], window, query.device)
            causal = mask is None
            piece = scaled_dot_product_attention(
                query[None, :, span], keys[None], values[None], attn_mask=mask, is_causal=causal, scale=scale, dropout_p=dropout
            )
            pieces.append(piece[0])
        return torch.cat(pieces, 1)


def _mask(num_queries: int, num_keys: int, window: int | None, device: torch.device) -> Tensor | None:
    """Who sees whom when the queries are the last of the keys; None if plainly causal."""
    if num_queries == num_keys and (window is None or num_keys <= window):
        return None
    at = torch.arange(num_keys - num_queries, num_keys, device=device)[:, None]
    keys = torch.arange(num_keys, device=device)[None, :]
    mask = at >= keys
    return mask if window is None else mask & (at - keys < window)
