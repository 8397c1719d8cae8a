"""torch's FlexAttention under a block mask made of segments and parents, on a CUDA GPU."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from zephyr_kit import ZkitError
from zephyr_kit.batch import Batch
from zkit_attentions.cuda import cuda_problems
from zkit_attentions.segments import Segments

BLOCK = 128
"""Tokens that the kernel looks at, or passes over, together."""
OPTIONS = {"FORCE_USE_FLEX_ATTENTION": True}
"""Rows of fewer than 128 tokens would get a kernel for decoding, which has none of their shape."""
Blocks = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Flex:
    """A Triton kernel, compiled once for rows of any length; of the fast ones only it has a sliding window over shared prompts."""

    def problems(self, device: torch.device) -> Sequence[str]:
        # On a CPU it has no backward pass.
        return cuda_problems("flex", device, capability=(8, 0), package="triton")

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, batch: Batch, *, scale: float, window: int | None, dropout: float
    ) -> Tensor:
        if dropout:
            raise ZkitError(f'[model] attention: flex has no dropout, and the model\'s attention_dropout is {dropout}; use "auto"')
        if query.device.type != "cuda":  # a rehearsal on tensors without data: what is held is the same
            return Segments().attend(query, key, value, batch, scale=scale, window=window, dropout=dropout)
        mask, gqa = _block_mask(batch, window), len(query) != len(key)
        attended: Tensor = _compiled()(
            query[None], key[None], value[None], block_mask=mask, scale=scale, enable_gqa=gqa, kernel_options=OPTIONS
        )
        return attended[0]


@cache
def _compiled() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


def _block_mask(batch: Batch, window: int | None) -> Any:
    """Made once for all layers with this window."""
    name = (__name__, "block mask", window)
    if name not in batch.prepared:
        batch.prepared[name] = _make_block_mask(batch, window)
    return batch.prepared[name]


def _make_block_mask(batch: Batch, window: int | None) -> Any:
    from torch.nn.attention.flex_attention import BlockMask

    mixed, full = blocks(batch, window=window)
    tokens = len(batch.tokens_T)
    device = batch.tokens_T.device
    return BlockMask.from_kv_blocks(
        *_listed(mixed, device), *_listed(full, device), BLOCK_SIZE=BLOCK, mask_mod=seen(batch, window), seq_lengths=(tokens, tokens)
    )


def seen(batch: Batch, window: int | None) -> Callable[..., Tensor]:
    """`visible` for single tokens."""
    segment_T, positions_T = batch.segment_T, batch.positions_T
    parent_T = batch.parent_S[segment_T]

    def mask_mod(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own = (segment_T[query] == segment_T[key]) & (query >= key)
        found = own | (parent_T[query] == segment_T[key])
        return found if window is None else found & (positions_T[query] - positions_T[key] < window)

    return mask_mod


def blocks(batch: Batch, *, window: int | None) -> tuple[Blocks, Blocks]:
    """Which blocks of keys a block of queries sees in part, and which in full: two (blocks, blocks) masks.

    Worked out on the host, which knows the segments, so that the device is not waited for.
    """
    ends = list(itertools.accumulate(batch.lengths))
    spans = [(end - length, end) for end, length in zip(ends, batch.lengths, strict=True)]
    size = -(-sum(batch.lengths) // BLOCK)
    touched, full = np.zeros((size, size), np.bool_), np.zeros((size, size), np.bool_)
    pairs = [(span, span) for span in spans]
    for parent, children in itertools.groupby(range(len(spans)), batch.parents.__getitem__):
        if parent >= 0:
            members = list(children)
            pairs.append(((spans[members[0]][0], spans[members[-1]][1]), spans[parent]))
    for queries, keys in pairs:
        if queries[0] < queries[1] and keys[0] < keys[1]:
            touched[_touched(queries), _touched(keys)] = True
            full[_within(queries), _within(keys)] = True
    # No token sees a later one, for parents lie before their children.
    touched, full = np.tril(touched), np.tril(full, -1) if window is None else np.zeros_like(full)
    return touched & ~full, full


def _touched(span: tuple[int, int]) -> slice:
    return slice(span[0] // BLOCK, -(-span[1] // BLOCK))


def _within(span: tuple[int, int]) -> slice:
    return slice(-(-span[0] // BLOCK), max(-(-span[0] // BLOCK), span[1] // BLOCK))


def _listed(mask: Blocks, device: torch.device) -> tuple[Tensor, Tensor]:
    """How many blocks each row has, and which, these first; with axes for batch and heads."""
    counts, order = mask.sum(-1), np.argsort(~mask, axis=-1, kind="stable")
    made = (torch.from_numpy(each.astype(np.int32))[None, None] for each in (counts, order))
    count, which = (each.to(device, non_blocking=True) for each in made)
    return count, which
