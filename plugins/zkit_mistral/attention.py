"""Packed rows through transformers' attention interface.

The kernel and the batch travel as a keyword argument of the model's forward, through every
layer, to the function that is registered here; the mask function, registered under the same
name, makes no mask, since the kernel knows who sees whom.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from zephyr_kit.batch import Batch
from zephyr_kit.protocols import Attention

NAME = "zephyr_kit"


@dataclass(frozen=True, slots=True)
class Packed:
    """What the attention of each layer needs to know."""

    attention: Attention
    batch: Batch


def register() -> None:
    """Make `attn_implementation="zephyr_kit"` known to transformers; again changes nothing."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, _no_mask)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    packed: Packed,
    **others: Any,
) -> tuple[Tensor, None]:
    """One layer: (1, heads, T, size) each, to (1, T, heads, size)."""
    unheard = [name for name in ("softcap", "s_aux", "position_bias") if others.get(name) is not None]
    if unheard:
        raise NotImplementedError(f"{type(module).__name__} asks its attention for {', '.join(unheard)}, which packed rows do not offer")
    attended = packed.attention.attend(
        query[0], key[0], value[0], packed.batch, scale=scaling, window=sliding_window, dropout=dropout
    )
    return attended.transpose(0, 1)[None].contiguous(), None


def _no_mask(*_: Any, **__: Any) -> None:
    return None
