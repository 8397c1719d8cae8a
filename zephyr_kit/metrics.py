"""`metrics.jsonl`: a line for each step, and for each look at held-out data."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class MetricLog:
    """The metrics file of a stage."""

    path: Path

    def append(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Add lines."""
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)

    def rewind(self, step: int) -> None:
        """Forget the lines after `step`: training goes on from there."""
        kept = [line for line in self.lines() if line["step"] <= step]
        staging = self.path.with_suffix(".part")
        staging.write_text("".join(json.dumps(line) + "\n" for line in kept), "utf-8")
        staging.replace(self.path)

    def lines(self) -> Iterator[dict[str, Any]]:
        """All whole lines; a killed process may have left a half one at the end."""
        if self.path.exists():
            for text in self.path.read_text("utf-8").split("\n")[:-1]:
                yield json.loads(text)
