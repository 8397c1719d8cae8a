"""Bytes, in words."""

from __future__ import annotations

KIB, MIB, GIB = 2**10, 2**20, 2**30


def in_words(size: float) -> str:
    """Three figures of it, in the unit that suits."""
    for unit, one in (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if size >= one:
            number = size / one
            return f"{number:,.0f} {unit}" if number >= 100 else f"{number:.3g} {unit}"
    return f"{size:.0f} bytes"
