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
    return {}
