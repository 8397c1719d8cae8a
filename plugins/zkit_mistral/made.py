"""Results that are cheap to compute again, and that say what of: who would keep one for the backward pass keeps that instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor


class Made(NamedTuple):
    """How a tensor came about. What it is made of is kept for the backward pass anyway."""

    make: Callable[..., Tensor]
    of: tuple[Tensor, ...]


def mark(result: Tensor, make: Callable[..., Tensor], *of: Tensor) -> Tensor:
    """The result, which says how it can be made again."""
    marked: Any = result
    marked.made = Made(make, tuple(tensor.detach() for tensor in of))
    return result


def how_made(tensor: Tensor) -> Made | None:
    """What is known of it."""
    return getattr(tensor, "made", None)
