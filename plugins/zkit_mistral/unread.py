"""The last layer, spared the tokens that nobody reads.

The head reads the sources of the targets, and other tokens the keys and values of all: what the last layer's other parts
would make of a token that is no source, as most of a prompt's are, goes nowhere. Each of these parts looks at a token by
itself, so it is given the sources alone, and the rest of its result is zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from zkit_mistral.pointwise import is_gated

PROJECTIONS = ("q_proj", "o_proj")


def spare_unread(model: Any) -> None:
    """Let those parts of the model's last layer that it has by their usual names see no more than they need to."""
    layer = getattr(model, model.base_model_prefix).layers[-1]
    parts = [getattr(layer.self_attn, name, None) for name in PROJECTIONS]
    readers = _Readers()
    layer.register_forward_pre_hook(readers.learn, with_kwargs=True)
    for part in (*parts, layer.mlp if is_gated(layer.mlp) else None):
        if part is not None:
            part.register_forward_pre_hook(readers.take)
            part.register_forward_hook(readers.put_back)


class _Readers:
    """What is read of the row that the layer is at, for the hooks of its parts."""

    def __init__(self) -> None:
        self._read_R: Tensor | None = None
        self._num_tokens = 0

    def learn(self, _layer: nn.Module, _given: Any, named: Mapping[str, Any]) -> None:
        """By a hook of the layer, which comes again where the layer is computed again."""
        packed = named.get("packed")
        read_R = None if packed is None else packed.read_R
        # Not every kind of layer takes no tokens at all: a row without targets goes whole.
        self._read_R = read_R if read_R is not None and len(read_R) else None

    def take(self, _part: nn.Module, given: tuple[Tensor]) -> tuple[Tensor]:
        """(1, T, D) to (1, R, D)."""
        (hidden,) = given
        self._num_tokens = hidden.shape[1]
        return given if self._read_R is None else (hidden.index_select(1, self._read_R),)

    def put_back(self, _part: nn.Module, _given: Any, made: Tensor) -> Tensor:
        """(1, R, D) to (1, T, D)."""
        if self._read_R is None:
            return made
        return made.new_zeros(1, self._num_tokens, made.shape[-1]).index_copy(1, self._read_R, made)
