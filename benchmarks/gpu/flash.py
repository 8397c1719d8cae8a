"""torch's own flash kernel as an attention of transformers: what trl is given where the package flash-attn is not installed.

A packed row comes with where its examples end (trl's collator tells `cu_seq_lens_q` and `max_length_q`), and the kernel
keeps them apart. A padded batch is plainly causal: padding stands on the right, where no real token sees it. No mask
function is registered under the name, so transformers makes no mask.
"""

from __future__ import annotations

import inspect
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

NAME = "torch_varlen"
"""Without the word flash, at which transformers looks for a package."""


def register() -> None:
    """Make `attn_implementation="torch_varlen"` known to transformers."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)


def attend(
    module: nn.Module,  # noqa: ARG001  transformers' signature
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """One layer: (B, heads, T, size) each, to (B, T, heads, size)."""
    assert attention_mask is None or attention_mask.ndim == 2, "there is no mask function under this name"
    # Under autocast the rotary embedding leaves queries and keys in float32.
    query, key = query.to(value.dtype), key.to(value.dtype)
    if cu_seq_lens_q is None:
        attended = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
        return attended.transpose(1, 2).contiguous(), None
    assert max_length_q is not None, "trl's collator tells both"
    rows = (x[0].transpose(0, 1) for x in (query, key, value))
    return packed(*rows, cu_seq_lens_q, max_length_q, scaling)[None], None


def packed(query: Tensor, key: Tensor, value: Tensor, ends: Tensor, longest: int, scale: float) -> Tensor:
    """Sequences end to end, causal each by itself: (T, heads, size) each, to the same; `ends` begins with 0."""
    if query.device.type != "cuda":
        return one_by_one(query, key, value, ends, scale)
    if not takes_fewer_keys():
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    return _kernel(query, key, value, ends, longest, scale)


@cache
def takes_fewer_keys() -> bool:
    """Whether torch's function passes fewer key heads than heads on to the kernel, which knows them."""
    query, key = (torch.zeros(8, heads, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for heads in (4, 2))
    try:
        _kernel(query, key, key, torch.tensor([0, 8], device="cuda", dtype=torch.int32), 8, 1.0).sum().backward()
    except (ValueError, RuntimeError):
        return False
    return True


def _kernel(query: Tensor, key: Tensor, value: Tensor, ends: Tensor, longest: int, scale: float) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    known = inspect.signature(varlen_attn).parameters
    # torch 2.10 has `is_causal` and no scale; later ones a window.
    how = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    how |= {name: setting for name, setting in (("enable_gqa", True), ("scale", scale)) if name in known}
    attended: Tensor = varlen_attn(query, key, value, ends, ends, longest, longest, **how)
    return attended


def one_by_one(query: Tensor, key: Tensor, value: Tensor, ends: Tensor, scale: float) -> Tensor:
    """What the kernel computes, slowly and on any device."""
    pieces = []
    for start, end in pairwise(ends.tolist()):
        q, k, v = (x[start:end].transpose(0, 1)[None] for x in (query, key, value))
        pieces.append(scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)[0].transpose(0, 1))
    return torch.cat(pieces)


def agrees() -> bool:
    """Whether kernel and slow way say the same on this device, forward and backward, with fewer key heads than heads."""
    generator = torch.Generator(device="cuda").manual_seed(0)
    shapes = ((48, 8, 128), (48, 2, 128), (48, 2, 128))
    drawn = [torch.randn(shape, generator=generator, device="cuda", dtype=torch.bfloat16, requires_grad=True) for shape in shapes]
    ends = torch.tensor([0, 17, 48], device="cuda", dtype=torch.int32)
    ways = (packed(*drawn, ends, 31, 128**-0.5), one_by_one(*drawn, ends, 128**-0.5))
    fast, slow = ([attended, *torch.autograd.grad(attended.square().sum(), drawn)] for attended in ways)
    return all(torch.allclose(a, b, rtol=5e-2, atol=5e-2 * float(b.abs().max())) for a, b in zip(fast, slow, strict=True))
