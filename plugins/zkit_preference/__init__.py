"""Preference objectives over (chosen, rejected) pairs: `dpo` and `ipo`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from zephyr_kit import hookimpl

if TYPE_CHECKING:
    from zephyr_kit.protocols import Objective


@hookimpl
def zkit_objectives() -> Mapping[str, type[Objective]]:
    """Offer `dpo` and `ipo`."""
    from zkit_preference.dpo import Dpo
    from zkit_preference.ipo import Ipo

    return {"dpo": Dpo, "ipo": Ipo}
