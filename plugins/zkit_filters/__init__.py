"""Filters of dialogues: truecasing, disclaimers, near-duplicates, contamination, length, language."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from zephyr_kit import hookimpl

if TYPE_CHECKING:
    from zephyr_kit.protocols import Filter


@hookimpl
def zkit_filters() -> Mapping[str, type[Filter]]:
    """Offer the filters by which UltraChat became the data of Zephyr, and their relatives."""
    from zkit_filters.decontaminate import Decontaminate
    from zkit_filters.disclaimers import Disclaimers
    from zkit_filters.language import Language
    from zkit_filters.length import Length
    from zkit_filters.near_duplicates import NearDuplicates
    from zkit_filters.truecase import Truecase

    return {
        "truecase": Truecase,
        "disclaimers": Disclaimers,
        "near_duplicates": NearDuplicates,
        "decontaminate": Decontaminate,
        "length": Length,
        "language": Language,
    }
