"""Where things that can be made again are kept between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """A folder under `ZKIT_CACHE`, or under the user's cache."""
    root = os.environ.get("ZKIT_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zephyr-kit"
    folder = Path(root) / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder
