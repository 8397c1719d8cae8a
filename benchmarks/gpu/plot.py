"""The results as bars: real tokens a second and peak memory of each side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu.results import MEASURED
from benchmarks.gpu.runs import OURS, TRL

PANELS = {"real tokens a second": "real tokens a second", "peak GiB": "peak memory in GiB"}


def plot(cells: Mapping[str, Any], path: Path) -> None:
    """Both panels, a group of bars for each cell; nothing without matplotlib."""
    try:
        import matplotlib as mpl
    except ImportError:
        return
    mpl.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(len(PANELS), 1, figsize=(10, 7.5), layout="constrained", sharex=True)
    for axes, (key, label) in zip(panels, PANELS.items(), strict=True):
        for place, side in enumerate((OURS, TRL)):
            values = [_value(cell["sides"].get(side, {}), key) for cell in cells.values()]
            bars = axes.bar([number + 0.4 * (place - 0.5) for number in range(len(values))], values, 0.37, label=side)
            axes.bar_label(bars, [f"{value:,.0f}" if value else "" for value in values], fontsize=8, padding=1)
        axes.set_ylabel(label)
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xticks(range(len(cells)), list(cells))
    panels[0].legend(frameon=False)
    figure.suptitle("zephyr-kit beside trl 1.16: same weights, examples, order, optimizer")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _value(facts: Mapping[str, Any], key: str) -> float:
    return float(facts.get(key) or 0) if facts.get("outcome") == MEASURED else 0.0
