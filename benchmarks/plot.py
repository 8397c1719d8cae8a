"""The results of `training` as bars: how many times as fast as trl, and what share of its memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.table import fastest, order

PANELS = {"times as fast": ("times trl's real tokens a second", "{:.1f}"), "share of its memory": ("share of trl's peak memory", "{:.2f}")}

METHODS = {"full": "full weights", "lora": "LoRA"}


def plot(cells: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Both panels, against the fastest of trl's settings that were measured, freed memory being kept by both sides."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    shown = sorted((cell for cell in cells if cell["allocator"] == "kept"), key=order)
    figure, panels = pyplot.subplots(len(PANELS), 1, figsize=(10, 7.5), layout="constrained", sharex=True)
    for axes, (name, (label, form)) in zip(panels, PANELS.items(), strict=True):
        _bars(axes, shown, name, form)
        axes.set_ylabel(label)
        axes.axhline(1, color="0.4", linewidth=0.8)
        axes.text(1.005, 1, "trl", transform=axes.get_yaxis_transform(), va="center", color="0.4")
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.suptitle("zephyr-kit beside trl 1.16 (the fastest setting measured): same model, examples, order, optimizer, losses")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _bars(axes: Any, cells: Sequence[Mapping[str, Any]], name: str, form: str) -> None:
    """A group of bars for each workload, a bar for each model and method."""
    workloads = list(dict.fromkeys(cell["workload"] for cell in cells))
    kinds = list(dict.fromkeys((cell["model"], cell["method"]) for cell in cells))
    width = 0.8 / len(kinds)
    for number, kind in enumerate(kinds):
        values = {cell["workload"]: fastest(cell)[name] for cell in cells if (cell["model"], cell["method"]) == kind}
        places = [workloads.index(workload) + (number - (len(kinds) - 1) / 2) * width for workload in values]
        bars = axes.bar(places, list(values.values()), 0.92 * width, label=f"{kind[0].upper()}, {METHODS[kind[1]]}")
        axes.bar_label(bars, fmt=form, fontsize=8, padding=1)
    axes.set_xticks(range(len(workloads)), workloads)
