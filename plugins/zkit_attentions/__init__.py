"""Attention for packed rows that share prompts: `segments`, and `dense`, which is right by definition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from zephyr_kit import hookimpl

if TYPE_CHECKING:
    from zephyr_kit.protocols import Attention


@hookimpl
def zkit_attentions() -> Mapping[str, type[Attention]]:
    """Offer the kernels that need nothing but torch."""
    from zkit_attentions.dense import Dense
    from zkit_attentions.segments import Segments

    return {"dense": Dense, "segments": Segments}
