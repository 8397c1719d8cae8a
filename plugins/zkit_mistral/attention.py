"""Packed rows through transformers' attention interface.

The kernel and the batch travel as a keyword argument of the model's forward, through every
layer, to the function that is registered here. No mask function is registered under its name: so
transformers makes no mask, since the kernel knows who sees whom, and does not wait for the device
to tell it whether the row is packed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from zephyr_kit import ZkitError
from zephyr_kit.batch import Batch
from zephyr_kit.protocols import Attention

NAME = "zephyr_kit"
LAYERS = {"full_attention", "sliding_attention"}


@dataclass(frozen=True, slots=True)
class Packed:
    """What the layers need to know of a row."""

    attention: Attention
    batch: Batch
    read_R: Tensor | None = None
    """The tokens whose hidden states are read, if not all are."""
    asked: set[int] = field(default_factory=set)
    """The layers that asked for it."""

    def check(self, model: Any) -> None:
        """Refuse a model with layers that mix tokens in a way of their own: they would look across examples."""
        if len(self.asked) < model.config.num_hidden_layers:
            raise ZkitError(
                f"{type(model).__name__}: {len(self.asked)} of {model.config.num_hidden_layers} layers take their attention from "
                "transformers' interface; the others would look across the examples of a row, so `mistral` cannot train it"
            )


def check_layers(model: Any) -> None:
    """Refuse layers that do more than attention packed in rows can."""
    config, name = model.config, type(model).__name__
    odd = sorted(set(getattr(config, "layer_types", None) or ()) - LAYERS)
    if odd:
        known = " and ".join(sorted(LAYERS))
        raise ZkitError(f"{name} has layers of the kind {', '.join(odd)}, which packed rows do not offer; `mistral` knows {known}")
    cap = getattr(config, "attn_logit_softcapping", None)
    if cap:
        raise ZkitError(f"{name} caps its attention softly (attn_logit_softcapping = {cap}), which packed rows do not offer")


def register(wrapper: Callable[[Any], Any] | None = None) -> None:
    """Make `attn_implementation="zephyr_kit"` known to transformers; again changes nothing but to put it in a wrapper."""
    from transformers import AttentionInterface

    if wrapper is not None:
        AttentionInterface.register(NAME, wrapper(_attend))
    elif NAME not in AttentionInterface().valid_keys():
        AttentionInterface.register(NAME, _attend)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001  transformers' signature
    *,
    scaling: float,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    packed: Packed | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """One layer: (1, heads, T, size) each, to (1, T, heads, size)."""
    unheard = [name for name in ("softcap", "s_aux", "position_bias") if others.get(name) is not None]
    if unheard:
        raise ZkitError(f"{type(module).__name__} asks its attention for {', '.join(unheard)}, which packed rows do not offer")
    if packed is None:
        raise ZkitError(f"{type(module).__name__} is not told which tokens belong together: its model passes no keyword arguments on")
    packed.asked.add(int(getattr(module, "layer_idx", len(packed.asked))))
    attended = packed.attention.attend(
        query[0], key[0], value[0], packed.batch, scale=scaling, window=sliding_window, dropout=dropout
    )
    return attended.transpose(0, 1)[None].contiguous(), None
