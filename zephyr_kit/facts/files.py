"""Files that may be damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Complain = Callable[[str], None]
"""Told, in a sentence, of a file that cannot be read."""


def read_table(path: Path, complain: Complain) -> dict[str, Any] | None:
    """The table of a JSON file; None if it is not there, or is damaged, which is told."""
    found = _read(path, complain)
    if found is None or isinstance(found, dict):
        return found
    complain(f"{path.name} cannot be read: it holds no table")
    return None


def read_tables(path: Path, complain: Complain) -> list[dict[str, Any]]:
    """The same of a list of tables; none if it is not there, or is damaged."""
    found = _read(path, complain)
    if isinstance(found, list) and all(isinstance(each, dict) for each in found):
        return found
    if found is not None:
        complain(f"{path.name} cannot be read: it holds no list of tables")
    return []


def _read(path: Path, complain: Complain) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        complain(f"{path.name} cannot be read: {error}")
        return None
