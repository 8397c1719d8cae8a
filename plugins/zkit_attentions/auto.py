"""The attention that suits the machine."""

from __future__ import annotations

from zkit_attentions.segments import Segments


class Auto(Segments):
    """`segments`, the fastest of those at hand everywhere."""
