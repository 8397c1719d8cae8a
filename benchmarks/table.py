"""The results of `training` as a table of Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

COLUMNS = (
    *("model", "method", "workload", "freed memory", "trl's setting"),
    *("ours, tokens/s", "trl's", "times as fast", "by processor time"),
    *("ours, peak GiB", "trl's", "share", "ours at the start", "trl's"),
    *("ours, s to the first step", "trl's", "loss differs by"),
)
ALLOCATORS = {"kept": "kept", "glibc": "glibc's defaults"}


def write_table(cells: Sequence[Mapping[str, Any]], path: Path) -> str:
    """Write it, and give it back."""
    rows = [COLUMNS, ["---"] * len(COLUMNS), *(row for cell in sorted(cells, key=order) for row in _rows(cell))]
    text = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    path.write_text(text, "utf-8")
    return text


def order(cell: Mapping[str, Any]) -> tuple[Any, ...]:
    """Small models first."""
    size, unit = float(cell["model"][:-1]), cell["model"][-1]
    return size * (1000 if unit == "b" else 1), cell["method"], cell["workload"], cell["allocator"] != "kept"


def fastest(cell: Mapping[str, Any]) -> Mapping[str, Any]:
    """What trl reaches with the setting that is fastest."""
    return max(_theirs(cell).values(), key=lambda figures: figures["tokens a second"])


def _theirs(cell: Mapping[str, Any]) -> dict[str, Any]:
    return {side: figures for side, figures in cell["sides"].items() if side.startswith("trl")}


def _rows(cell: Mapping[str, Any]) -> Iterator[list[str]]:
    own = cell["sides"]["zephyr-kit"]
    best = fastest(cell)
    for side, figures in _theirs(cell).items():
        setting = side.removeprefix("trl, ")
        yield [
            cell["model"].upper(),
            cell["method"],
            cell["workload"],
            ALLOCATORS[cell["allocator"]],
            f"**{setting}**" if figures is best else setting,
            *(f"{side['tokens a second']:,.0f}" for side in (own, figures)),
            f"{figures['times as fast']:.1f}",
            f"{figures['times as fast by processor time']:.1f}",
            *(f"{side['peak GiB']:.2f}" for side in (own, figures)),
            f"{figures['share of its memory']:.2f}",
            *(f"{side['GiB at the start']:.2f}" for side in (own, figures)),
            *(f"{side['seconds to the first step']:.1f}" for side in (own, figures)),
            f"{figures['largest difference of a loss']:.0e}",
        ]
