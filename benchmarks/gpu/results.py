"""What was measured, kept as it comes, and both sides compared."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from benchmarks.gpu.cells import KINDS, Cell
from benchmarks.gpu.runs import OURS

MAX_DIFFERENCE = 1e-2
"""Of the loss of a step, as a share of it; more is no comparison."""
MEASURED, NO_TIME = "measured", "not measured: no time left"
DEFAULTS = {field.name: field.default for field in fields(Cell) if field.default is not MISSING}
"""Settings that a cell had before they were kept."""
Entry = dict[str, Any]


class Results:
    """Cells by name, in a file that is written anew after every run."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "gpu.json"
        self.cells: dict[str, Entry] = json.loads(self.path.read_text("utf-8")) if self.path.exists() else {}

    def begin(self, name: str, settings: Mapping[str, Any]) -> None:
        """Forget what was measured of this cell with other settings."""
        kept = self.cells.get(name)
        if kept is None or {**DEFAULTS, **kept["settings"]} != {**DEFAULTS, **settings}:
            self.cells[name] = {"settings": dict(settings), "sides": {}}

    def keep(self, name: str, side: str, facts: Mapping[str, Any]) -> None:
        """What came of a run; one that no time was left for leaves what was measured before."""
        before = self.cells[name]["sides"].get(side, {}).get("outcome")
        if facts["outcome"] == NO_TIME and before == MEASURED:
            return
        self.cells[name]["sides"][side] = dict(facts)
        self._write()

    def foretold(self, name: str, facts: Mapping[str, Any]) -> None:
        """What the plan says of the cell."""
        self.cells[name]["plan"] = dict(facts)
        self._write()

    def _write(self) -> None:
        for name, cell in self.cells.items():
            cell["beside"] = compared(cell["sides"], self.cells.get(_borrowed(name), cell)["sides"])
            plan, own = cell.get("plan", {}), cell["sides"].get(OURS, {})
            same = plan.get("checkpointing") == own.get("checkpointing")  # else it did not fit as planned
            cell["foretold / measured"] = _ratio(plan.get("foretold GiB"), own.get("peak GiB")) if same else None
        write(self.path, self.cells)


def write(path: Path, facts: Mapping[str, Any]) -> None:
    """Whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_suffix(".part")
    staging.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", "utf-8")
    staging.replace(path)


def _borrowed(name: str) -> str | None:
    """The cell whose other sides this one is compared with, if not its own."""
    return KINDS[name].beside if name in KINDS else None


def compared(own_sides: Mapping[str, Entry], sides: Mapping[str, Entry]) -> dict[str, Any]:
    """What ours is to each of the others."""
    own = own_sides.get(OURS, {})
    return {side: _beside(own, facts) for side, facts in sides.items() if side != OURS and _is_measured(own, facts)}


def _is_measured(*sides: Entry) -> bool:
    return all(facts.get("outcome") == MEASURED for facts in sides)


def _beside(own: Entry, other: Entry) -> dict[str, Any]:
    difference = _difference(own["losses"], other["losses"])
    return {
        "times as fast": round(own["real tokens a second"] / other["real tokens a second"], 2),
        "share of its memory": _ratio(own["peak GiB"], other["peak GiB"]),
        "largest difference of a loss": difference,
        "largest difference of a gradient norm": _difference(own["gradient norms"], other["gradient norms"]),
        "losses agree": difference <= MAX_DIFFERENCE,
    }


def _difference(ones: Sequence[float], others: Sequence[float]) -> float:
    return float(f"{max(abs(one - other) / abs(other) for one, other in zip(ones, others, strict=True)):.1e}")


def _ratio(one: float | None, other: float | None) -> float | None:
    return None if one is None or not other else round(one / other, 3)
