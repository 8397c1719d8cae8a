"""Data sources: JSON lines, JSON, CSV and Parquet files, and Hugging Face data sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from zephyr_kit import hookimpl

if TYPE_CHECKING:
    from zephyr_kit.protocols import DataSource


@hookimpl
def zkit_data_sources() -> Mapping[str, type[DataSource]]:
    """Offer local files by their kind, and `hub` for data sets of the Hugging Face hub."""
    from zkit_sources.files import Csv, Json, Jsonl, Parquet
    from zkit_sources.hub import Hub

    return {"jsonl": Jsonl, "json": Json, "csv": Csv, "parquet": Parquet, "hub": Hub}
