"""A data set that keeps to itself: its files lie in its folder, and its card names no others.

`datasets` reads whatever the card (README.md) or the state of a saved data set names, also above the
folder, anywhere on this machine, or on the network. What comes in would be trained on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from zephyr_kit.artifacts import ArtifactError, is_plain_name, place_problem

CARD, STATE, SPLITS = "README.md", "state.json", "dataset_dict.json"
NAMING = ("data_files", "data_dir", "path")
"""Keys of a card whose values name files."""


def check_contained(folder: Path, files: Iterable[Path]) -> None:
    """Raise `ArtifactError` when one of the files is none of the folder's, or names some that are not."""
    for file in files:
        problem = place_problem(file, folder)
        if problem:
            raise ArtifactError(f"{file}: {problem}")
        if file.name in (STATE, SPLITS):
            _check_saved(file)
    check_card(folder / CARD)


def check_card(card: Path) -> None:
    """The same of a card alone; one that is not there names nothing."""
    if not card.is_file():
        return
    from huggingface_hub import metadata_load

    try:
        metadata = metadata_load(card)
    except Exception as error:  # it may be anything
        raise ArtifactError(f"{card}: its head cannot be read: {str(error).splitlines()[0]}") from error
    for name in _named((metadata or {}).get("configs")):
        if name.startswith(("/", "~", "\\")) or "://" in name or "::" in name or ".." in Path(name).parts:
            raise ArtifactError(f"{card}: names {name[:80]!r}, which is none of its own files")


def _named(value: Any, *, names_files: bool = False) -> Iterator[str]:
    """Every text under a key that names files."""
    if isinstance(value, str) and names_files:
        yield value
    elif isinstance(value, list):
        for inner in value:
            yield from _named(inner, names_files=names_files)
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _named(inner, names_files=names_files or key in NAMING)


def _check_saved(file: Path) -> None:
    try:
        facts = json.loads(file.read_bytes())
        names = facts.get("splits", []) if file.name == SPLITS else [each["filename"] for each in facts["_data_files"]]
        odd = [name for name in names if not is_plain_name(name)]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"{file}: tells of no saved data set ({type(error).__name__})") from error
    if odd:
        raise ArtifactError(f"{file}: names {str(odd[0])[:80]!r}, which is none of its own files")
