"""A small engine for aligning language models, extended by plugins.

What a plugin author needs first is importable from here; nothing here imports torch.
"""

from __future__ import annotations

from enum import Enum

import pluggy

from zephyr_kit.exits import Exit

NAME = "zephyr_kit"
__version__ = "0.1.0"

hookspec = pluggy.HookspecMarker(NAME)
hookimpl = pluggy.HookimplMarker(NAME)


class Unit(Enum):
    """What a loss is averaged over, across the whole optimiser step."""

    TOKEN = "token"  # noqa: S105  not a secret
    """Of each target token: long completions count for more."""
    EXAMPLE = "example"
    """Of each example, with all its completions: a pair, say."""


class ZkitError(Exception):
    """Something the user can mend; the message says what, where and how."""

    exit: Exit = Exit.CANNOT
    """How the command ends with it."""


__all__ = ["NAME", "Unit", "ZkitError", "__version__", "hookimpl", "hookspec"]
