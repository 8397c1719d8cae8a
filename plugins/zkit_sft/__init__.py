"""Supervised fine-tuning: the objective `sft`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from zephyr_kit import hookimpl

if TYPE_CHECKING:
    from zephyr_kit.protocols import Objective


@hookimpl
def zkit_objectives() -> Mapping[str, type[Objective]]:
    """Offer `sft`."""
    from zkit_sft.objective import Sft

    return {"sft": Sft}
