"""`metrics.jsonl`: a line for each step, and for each look at held-out data."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zephyr_kit.disk import put
from zephyr_kit.records import DamagedError

HELD_OUT = "held_out/"
"""Before the name of every metric of held-out data."""


@dataclass(frozen=True, slots=True)
class Rewound:
    """What a metrics file had when training went on."""

    last_step: int
    """That had a line; 0 if there was none."""
    num_damaged: int
    """Lines that could not be read, and are gone."""
    missing: Sequence[int]
    """Steps up to where training goes on that have no line."""

    def told(self) -> str:
        """What it lacks; empty if nothing."""
        damaged = f"{self.num_damaged:,} damaged line{'s' if self.num_damaged > 1 else ''} removed" if self.num_damaged else ""
        return ", ".join(filter(None, (damaged, f"no line of step {_runs(self.missing)}" if self.missing else "")))


@dataclass(frozen=True, slots=True)
class MetricLog:
    """The metrics file of a stage."""

    path: Path

    def append(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Add lines."""
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(_written(line), allow_nan=False) + "\n" for line in lines)

    def rewind(self, step: int) -> Rewound:
        """Forget the lines after `step`, from where training goes on, and those that cannot be read."""
        found = [_parsed(text) for text in self._texts()]
        whole = [line for line in found if line is not None]
        staging = self.path.with_suffix(".part")
        staging.write_text("".join(json.dumps(line) + "\n" for line in whole if line["step"] <= step), "utf-8")
        put(staging, self.path)
        missing = set(range(1, step + 1)) - {line["step"] for line in whole if "loss" in line}
        return Rewound(max((line["step"] for line in whole), default=0), len(found) - len(whole), sorted(missing))

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
        for number, text in enumerate(self._texts(), 1):
            line = _parsed(text)
            if line is None:
                raise DamagedError(f"{self.path}:{number}: damaged (no figures of a step); remove that line, and the same command goes on")
            yield line

    def _texts(self) -> list[str]:
        return self.path.read_text("utf-8", "replace").split("\n")[:-1] if self.path.exists() else []


def _runs(numbers: Sequence[int]) -> str:
    """Rising numbers, those that follow each other in short: `3, 7–9`."""
    known = set(numbers)
    firsts = [number for number in numbers if number - 1 not in known]
    lasts = [number for number in numbers if number + 1 not in known]
    return ", ".join(f"{first}–{last}" if last > first else f"{first}" for first, last in zip(firsts, lasts, strict=True))


def _parsed(text: str) -> dict[str, Any] | None:
    """The figures of a line; None if it is damaged."""
    with suppress(ValueError):
        line = json.loads(text)
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            return line
    return None


def _written(line: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: what is not finite becomes a text."""
    return {key: as_text(value) if isinstance(value, float) and not math.isfinite(value) else value for key, value in line.items()}


def as_text(value: float) -> str:
    """What is not finite as protobuf's JSON has it: `NaN`, `Infinity` or `-Infinity`."""
    if math.isfinite(value):
        return f"{value:.4g}"
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
