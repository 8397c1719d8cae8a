"""Attention for packed rows that share prompts: `auto`, and what it chooses among."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from zephyr_kit import hookimpl

if TYPE_CHECKING:
    from zephyr_kit.protocols import Attention


@hookimpl
def zkit_attentions() -> Mapping[str, type[Attention]]:
    """Offer kernels for CPUs and CUDA GPUs."""
    from zkit_attentions.auto import Auto
    from zkit_attentions.dense import Dense
    from zkit_attentions.flash import Flash
    from zkit_attentions.flex import Flex
    from zkit_attentions.segments import Segments
    from zkit_attentions.varlen import Varlen
    from zkit_attentions.xformers import Xformers

    return {
        "auto": Auto,
        "dense": Dense,
        "flash": Flash,
        "flex": Flex,
        "segments": Segments,
        "varlen": Varlen,
        "xformers": Xformers,
    }
