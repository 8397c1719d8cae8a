"""How often Python looks through all that there is for garbage."""

from __future__ import annotations

import gc

USUAL = gc.get_threshold()
SELDOM = (*USUAL[:2], 1000)


def look_seldom() -> None:
    """While much is loaded, that stays: to look through it again and again takes a sixth of a start."""
    gc.set_threshold(*SELDOM)


def look_as_usual() -> None:
    """From when on garbage may hold tensors."""
    gc.set_threshold(*USUAL)
