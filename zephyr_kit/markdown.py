"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """A Markdown table, a line each."""
    head = tuple(head)
    return [_row(head), _row(("---",) * len(head)), *map(_row, rows)]


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def figure(value: Any) -> str:
    """A cell: six digits are enough, a dash for what does not apply."""
    if value is None:
        return "–"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def laws_told(breaks: Mapping[str, str]) -> list[str]:
    """A paragraph on the laws that an objective says it breaks; nothing where it breaks none."""
    told = [f"- `{law}`: {reason}" for law, reason in breaks.items()]
    return ["The objective says that it breaks laws that results rest on (docs/laws.md):", "", *told, ""] if told else []
