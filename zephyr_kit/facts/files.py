"""Files that may be damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Complain = Callable[[str], None]
"""Told, in a sentence, of a file that cannot be read."""


def read_json(path: Path, complain: Complain, kind: type = dict) -> Any:
    """The value of a JSON file, of this kind; None if it is not there, or is damaged, which is told."""
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        complain(f"{path.name} cannot be read: {error}")
        return None
    if not isinstance(found, kind):
        complain(f"{path.name} cannot be read: it holds no {'list' if kind is list else 'table'}")
        return None
    return found
