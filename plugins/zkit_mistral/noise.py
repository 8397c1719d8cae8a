"""NEFTune: noise on the embeddings while training (arXiv 2310.05914)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from zephyr_kit.batch import Batch


@contextmanager
def noisy(embedding: nn.Module, batch: Batch, alpha: float, embedded_T: slice = slice(None)) -> Iterator[None]:
    """Within it, the embeddings of the batch, or of these tokens of it, get noise, uniform within alpha / sqrt(L D).

    L is the length of a token's own example: its segment, and the prompt that this shares; of a shared prompt, with the longest
    of its completions.
    """
    limit_T = alpha / lengths(batch)[embedded_T].sqrt()

    def add(_: nn.Module, __: Any, embedded: Tensor) -> Tensor:
        limit_TD = (limit_T / embedded.shape[-1] ** 0.5).to(embedded.dtype)[:, None]
        noise_TD: Tensor = limit_TD * (2 * torch.rand_like(embedded) - 1)
        return embedded + noise_TD

    hook = embedding.register_forward_hook(add)
    try:
        yield
    finally:
        hook.remove()


def lengths(batch: Batch) -> Tensor:
    """Tokens of the segment of each token, with those of its parent and of the longest of its children, (T,)."""
    one_T = torch.ones_like(batch.segment_T, dtype=torch.float32)
    own_S = one_T.new_zeros(len(batch.lengths)).index_add(0, batch.segment_T, one_T)
    is_child_S, parent_S = batch.parent_S >= 0, batch.parent_S.clamp(min=0)
    shared_S = torch.where(is_child_S, own_S[parent_S], 0)
    longest_S = torch.zeros_like(own_S).scatter_reduce(0, parent_S, torch.where(is_child_S, own_S, 0), "amax")
    length_S: Tensor = own_S + shared_S + longest_S
    return length_S[batch.segment_T]
