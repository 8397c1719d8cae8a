"""Files of one entry on each line, with comments."""

from __future__ import annotations

import hashlib
from importlib.resources import files


def packaged(name: str) -> str:
    """The text of a file that comes with this package."""
    return files("zkit_filters").joinpath(name).read_text("utf-8")


def entries(text: str) -> dict[int, str]:
    """Entries by line number; empty lines, and those that begin with #, are none."""
    lines = {number: line.strip() for number, line in enumerate(text.splitlines(), 1)}
    return {number: line for number, line in lines.items() if line and not line.startswith("#")}


def digest(*texts: str) -> str:
    """A text that stands for these."""
    return hashlib.blake2b("\0".join(texts).encode(), digest_size=16).hexdigest()
