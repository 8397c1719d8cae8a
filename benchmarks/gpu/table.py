"""The results as a table of Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu.results import MEASURED
from benchmarks.gpu.runs import OURS

COLUMNS = (
    *("cell", "side", "settings", "real tokens/s", "utilisation", "of real tokens", "peak GiB", "reserved"),
    *("times as fast", "share of memory", "loss differs by", "plan / measured"),
)


def write_table(cells: Mapping[str, Any], path: Path) -> str:
    """Write it, and give it back."""
    rows = [COLUMNS, ["---"] * len(COLUMNS), *(row for name, cell in cells.items() for row in _rows(name, cell))]
    text = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    path.write_text(text + _footnote(cells), "utf-8")
    return text


def _rows(name: str, cell: Mapping[str, Any]) -> Iterator[list[str]]:
    for side, facts in cell["sides"].items():
        if facts["outcome"] != MEASURED:
            yield [name, side, facts.get("settings", ""), facts["outcome"], *[""] * (len(COLUMNS) - 4)]
            continue
        beside = cell["beside"].get(side, {})
        yield [
            name,
            side,
            facts["settings"],
            f"{facts['real tokens a second']:,.0f}",
            *(_share(facts[f"utilisation, {kind} tokens"]) for kind in ("computed", "real")),
            *(_number(facts[key], "{:.1f}") for key in ("peak GiB", "peak GiB reserved")),
            *_compared(beside),
            _number(cell.get("foretold / measured") if side == OURS else None, "{:.2f}"),
        ]
    for side in (side for side in cell["beside"] if side not in cell["sides"]):
        yield [name, f"{side}, as above", *[""] * (len(COLUMNS) - 6), *_compared(cell["beside"][side]), ""]


def _compared(beside: Mapping[str, Any]) -> Iterator[str]:
    agree = beside.get("losses agree", True)
    yield _number(beside.get("times as fast"), "{:.2f}" if agree else "({:.2f})")
    yield _number(beside.get("share of its memory"), "{:.2f}")
    yield _number(beside.get("largest difference of a loss"), "{:.0e}" if agree else "**{:.0e}: no comparison**")


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f} %"


def _footnote(cells: Mapping[str, Any]) -> str:
    """On what it was measured, as the last run tells."""
    told = [facts["surroundings"] for cell in cells.values() for facts in cell["sides"].values() if "surroundings" in facts]
    if not told:
        return ""
    last = told[-1]
    card = f"{last['gpu']}, driver {last['driver']}" if "gpu" in last else last["processor"]
    packages = ", ".join(f"{name} {version}" for name, version in last["packages"].items())
    return f"\n{card}; Python {last['python']}, {packages}; {last['date']}; `{last['command']}`\n"
