"""Attention one segment at a time: no (T, T) mask, and no kernel but torch's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from zephyr_kit.batch import Batch
from zkit_attentions.merged import fits, merged_attention


@dataclass(frozen=True)
class Segments:
    """Scaled dot-product attention of each segment to itself, and to its parent if it has one."""

    def problems(self, device: torch.device) -> Sequence[str]:
        return []

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, batch: Batch, *, scale: float, window: int | None, dropout: float
    ) -> Tensor:
        if fits(query, batch, window=window, dropout=dropout):
            return merged_attention(query, key, value, batch, scale=scale)
        groups = query.shape[0] // key.shape[0]
        key, value = key.repeat_interleave(groups, 0), value.repeat_interleave(groups, 0)
        # Split, not sliced: the backward of a slice fills a whole tensor with zeros, for every segment.
        queries, keys, values = (torch.split(x, list(batch.lengths), 1) for x in (query, key, value))
        pieces = []
        for number, parent in enumerate(batch.parents):
            seen = [number] if parent < 0 else [parent, number]
            k, v = (pieces_of[number] if len(seen) == 1 else torch.cat([pieces_of[i] for i in seen], 1) for pieces_of in (keys, values))
            q = queries[number]
            mask = _mask(q.shape[1], k.shape[1], window, q.device)
            attended = scaled_dot_product_attention(
                q[None], k[None], v[None], attn_mask=mask, is_causal=mask is None, scale=scale, dropout_p=dropout
            )
            pieces.append(attended[0])
        return torch.cat(pieces, 1)


def _mask(num_queries: int, num_keys: int, window: int | None, device: torch.device) -> Tensor | None:
    """Who sees whom when the queries are the last of the keys; None if plainly causal."""
    if num_queries == num_keys and (window is None or num_keys <= window):
        return None
    at = torch.arange(num_keys - num_queries, num_keys, device=device)[:, None]
    keys = torch.arange(num_keys, device=device)[None, :]
    mask = at >= keys
    return mask if window is None else mask & (at - keys < window)
