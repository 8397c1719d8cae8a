"""Where a plugin comes from."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import EntryPoint
from importlib.util import find_spec
from pathlib import Path

DISTRIBUTION = "zephyr-kit"
OUR_PLACES = (Path(__file__).parents[1], Path(__file__).parents[1] / "plugins")
"""Beside this package: where it is installed, and in a checkout."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a plugin comes from."""

    name: str
    distribution: str
    version: str
    module: str

    @property
    def is_ours(self) -> bool:
        """Whether it lies where this package does: a distribution may call itself anything."""
        found = find_spec(self.module.partition(":")[0].partition(".")[0])
        place = Path(found.origin).parent.parent if found is not None and found.origin else None
        return self.distribution == DISTRIBUTION and place in OUR_PLACES

    def __str__(self) -> str:
        return f"{self.name} ({self.distribution} {self.version})"


def origin_of(entry: EntryPoint) -> Origin:
    """By its entry point; nothing of it is imported."""
    distribution = entry.dist
    name, version = (distribution.name, distribution.version) if distribution else ("?", "?")
    return Origin(entry.name, name, version, entry.value)
