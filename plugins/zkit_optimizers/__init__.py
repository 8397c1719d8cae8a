"""Optimizers: torch's fused AdamW, and bitsandbytes' 8-bit and paged ones, each with float32 copies or stochastic rounding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from zephyr_kit import hookimpl

if TYPE_CHECKING:
    from zephyr_kit.protocols import OptimizerFactory


@hookimpl
def zkit_optimizers() -> Mapping[str, type[OptimizerFactory]]:
    """Offer AdamW in several forms."""
    from zkit_optimizers.adamw import AdamW, AdamW8bit, PagedAdamW8bit, PagedAdamW32bit

    return {"adamw": AdamW, "adamw_8bit": AdamW8bit, "paged_adamw_8bit": PagedAdamW8bit, "paged_adamw_32bit": PagedAdamW32bit}
