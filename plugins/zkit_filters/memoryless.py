"""What filters share that look at each example alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from zephyr_kit.config import plain
from zephyr_kit.example import Example
from zephyr_kit.protocols import Verdict


@dataclass(frozen=True)
class Memoryless:
    """A filter that remembers nothing and fetches nothing; each adds how it looks."""

    kind: ClassVar[str]
    edition: ClassVar[int] = 1
    """Raised whenever the same options come to do something else."""

    def look(self, example: Example) -> Verdict:
        raise NotImplementedError

    def memory(self, folder: Path, *, first: int) -> None:
        return None

    def fingerprint(self) -> str:
        return json.dumps({"use": self.kind, "edition": self.edition, **self.content()}, sort_keys=True)

    def content(self) -> dict[str, Any]:
        """What its verdicts depend on: its options, unless it reads more."""
        options: dict[str, Any] = plain(self)
        return options

    def problems(self) -> Sequence[str]:
        return []

    def miniature(self, folder: Path) -> Self:
        return self
