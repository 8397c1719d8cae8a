"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """A Markdown table, a line each."""
    head = tuple(head)
    return [_row(head), _row(("---",) * len(head)), *map(_row, rows)]


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


def figure(value: Any) -> str:
    """A cell: six digits are enough, a dash for what does not apply."""
    if value is None:
        return "–"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
