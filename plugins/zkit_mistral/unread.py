"""The last layer, spared the tokens that nobody reads.

The head reads the sources of the targets, and other tokens the keys and values of all: what the last layer's other parts
would make of a token that is no source, as most of a prompt's are, goes nowhere. Each of these parts looks at a token by
itself, so it is given the sources alone, and the rest of its result is zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from zkit_mistral.pointwise import is_gated

if TYPE_CHECKING:
    from zkit_mistral.settings import Settings

PROJECTIONS = ("q_proj", "o_proj")


def spare_unread(model: Any, settings: Settings) -> None:
    """Let those parts of the model's last layer that it has by their usual names see no more than they need to."""
    layers = getattr(getattr(model, model.base_model_prefix), "layers", None)
    if not layers or settings.compile:  # for it, the rows that are read would be other code each time
        return
    reading = _Reading()
    layers[-1].register_forward_pre_hook(reading.learn, with_kwargs=True)
    for part in _parts(layers[-1]):
        part.forward = _Spared(part.forward, reading).forward


def _parts(layer: Any) -> list[Any]:
    attention, gated = getattr(layer, "self_attn", None), getattr(layer, "mlp", None)
    projections = [getattr(attention, name, None) for name in PROJECTIONS]
    return [part for part in (*projections, gated if is_gated(gated) else None) if part is not None]


class _Reading:
    """What is read of the row that the layer is at."""

    def __init__(self) -> None:
        self.read_R: Tensor | None = None

    def learn(self, _layer: nn.Module, _given: Any, named: Mapping[str, Any]) -> None:
        """By a hook of the layer, which comes again where the layer is computed again."""
        packed = named.get("packed")
        read_R = None if packed is None else packed.read_R
        # Not every kind of layer takes no tokens at all: a row without targets goes whole.
        self.read_R = read_R if read_R is not None and len(read_R) else None


@dataclass(frozen=True, slots=True)
class _Spared:
    """A part's own forward, of fewer tokens; the hooks of others see all of them, as before."""

    whole: Callable[[Tensor], Tensor]
    reading: _Reading

    def forward(self, hidden: Tensor) -> Tensor:
        """(1, T, I) to (1, T, O)."""
        read_R = self.reading.read_R
        if read_R is None:
            return self.whole(hidden)
        made = self.whole(hidden.index_select(1, read_R))
        return made.new_zeros(1, hidden.shape[1], made.shape[-1]).index_copy_(1, read_R, made)
