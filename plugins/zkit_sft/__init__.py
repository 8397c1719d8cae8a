"""Supervised fine-tuning: the objectives `sft` and `dft`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from zephyr_kit import hookimpl

if TYPE_CHECKING:
    from zephyr_kit.protocols import Objective


@hookimpl
def zkit_objectives() -> Mapping[str, type[Objective]]:
    """Offer `sft` and `dft`."""
    from zkit_sft.dft import Dft
    from zkit_sft.objective import Sft

    return {"sft": Sft, "dft": Dft}
