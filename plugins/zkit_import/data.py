"""Data sets as the tables of a preset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Portion = dict[str, Any]
"""A table of a stage's `data`."""

RECIPE = {
    "huggingfaceh4/ultrachat_200k": "ultrachat",
    "stingning/ultrachat": "ultrachat",
    "openbmb/ultrachat": "ultrachat",
    "huggingfaceh4/ultrafeedback_binarized": "ultrafeedback",
    "argilla/ultrafeedback-binarized-preferences-cleaned": "ultrafeedback",
}
"""Data sets that have a source of their own."""
BY_SUFFIX = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


@dataclass(frozen=True)
class Held:
    """Rows to train on, and rows held out."""

    train: tuple[Portion, ...]
    held_out: tuple[Portion, ...] = ()


def format_of(stage: str) -> Portion:
    """Pairs are in one format; dialogues are told by their columns."""
    return {"format": "preference"} if stage == "dpo" else {}


def from_hub(name: str, *, split: str | None, config: str | None = None, read_as: Mapping[str, Any] | None = None) -> Portion:
    """A data set of the hub."""
    source = RECIPE.get(name.lower())
    own = {"split": split} if split else {}
    if source is not None and config in (None, "default"):
        return {"use": source, "path": name, **own}
    named = {} if config in (None, "default") else {"config": config}
    return {"use": "hub", "path": name, **own, **named, **(read_as or {})}


def from_file(path: str, read_as: Mapping[str, Any] | None = None) -> Portion:
    """A local file, by how its name ends."""
    suffix = Path(path.removesuffix(".gz")).suffix
    return {"use": BY_SUFFIX.get(suffix, "jsonl"), "path": path, **(read_as or {})}
