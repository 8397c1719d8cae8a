"""`metrics.jsonl`: a line for each step, and for each look at held-out data."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zephyr_kit import ZkitError
from zephyr_kit.disk import put

HELD_OUT = "held_out/"
"""Before the name of every metric of held-out data."""


@dataclass(frozen=True, slots=True)
class MetricLog:
    """The metrics file of a stage."""

    path: Path

    def append(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Add lines."""
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(_written(line), allow_nan=False) + "\n" for line in lines)

    def rewind(self, step: int) -> None:
        """Forget the lines after `step`: training goes on from there."""
        kept = [line for line in self.lines() if line["step"] <= step]
        staging = self.path.with_suffix(".part")
        staging.write_text("".join(json.dumps(line) + "\n" for line in kept), "utf-8")
        put(staging, self.path)

    def last_step(self) -> int:
        """The last step that has a line; 0 if there is none."""
        return max((line["step"] for line in self.lines()), default=0)

    def worth(self, name: str) -> dict[int, float]:
        """How good each step was by a metric, the more the better: losses are best when they are low."""
        sign = -1.0 if name.endswith("loss") else 1.0
        return {line["step"]: sign * line[name] for line in self.lines() if isinstance(line.get(name), float)}

    def has_look(self, step: int) -> bool:
        """Whether held-out data was looked at after this step."""
        return any(line["step"] == step and any(name.startswith(HELD_OUT) for name in line) for line in self.lines())

    def num_skipped(self) -> int:
        """How many steps without an update there are at the end."""
        counts = [line.get("skipped", 0) for line in self.lines() if "loss" in line]
        return int(counts[-1]) if counts else 0

    def lines(self) -> Iterator[dict[str, Any]]:
        """All whole lines; a killed process may have left a half one at the end."""
        if self.path.exists():
            for number, text in enumerate(self.path.read_text("utf-8", "replace").split("\n")[:-1], 1):
                try:
                    yield json.loads(text)
                except ValueError as error:
                    raise ZkitError(f"{self.path}:{number}: damaged ({error}); remove that line, and the same command goes on") from error


def _written(line: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: what is not finite becomes a text."""
    return {key: as_text(value) if isinstance(value, float) and not math.isfinite(value) else value for key, value in line.items()}


def as_text(value: float) -> str:
    """What is not finite as protobuf's JSON has it: `NaN`, `Infinity` or `-Infinity`."""
    if math.isfinite(value):
        return f"{value:.4g}"
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
