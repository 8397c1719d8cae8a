"""Data sources: JSON lines, JSON, CSV and Parquet files, Hugging Face data sets, UltraChat and UltraFeedback."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from zephyr_kit import hookimpl

if TYPE_CHECKING:
    from zephyr_kit.protocols import DataSource


@hookimpl
def zkit_data_sources() -> Mapping[str, type[DataSource]]:
    """Offer local files by their kind, `hub` for data sets of the Hugging Face hub, those of the recipe, and rows of earlier stages."""
    from zephyr_kit.gathered import StageRows
    from zkit_sources.files import Csv, Json, Jsonl, Parquet
    from zkit_sources.hub import Hub
    from zkit_sources.ultra import UltraChat, UltraFeedback

    files = {"jsonl": Jsonl, "json": Json, "csv": Csv, "parquet": Parquet}
    return {**files, "hub": Hub, "ultrachat": UltraChat, "ultrafeedback": UltraFeedback, "stage": StageRows}
