"""With what, and on what, a result was made."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from zephyr_kit import __version__
from zephyr_kit.redaction import redacted

PACKAGES = ("bitsandbytes", "datasets", "peft", "tokenizers", "torch", "transformers", "unsloth")



def surroundings() -> dict[str, Any]:
    """Versions and machine."""
    return {
        "zephyr-kit": __version__,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "system": platform.platform(),
        "processors": os.cpu_count(),
        "command": [redacted(word) for word in sys.argv[1:]],
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
