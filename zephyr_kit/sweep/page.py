"""A sweep as one HTML file, in the style of a run's report."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from zephyr_kit.report.page import rendered
from zephyr_kit.sweep.plots import curve_plots, figure_plots
from zephyr_kit.sweep.view import View


def page(view: View) -> str:
    """The page as text."""
    figures = {stage: list(figure_plots(view.settings, stage)) for stage in view.stages}
    drawn = {stage: curves for stage in view.stages if (curves := curve_plots(view.settings, stage, view.facts)).plots}
    plots = [plot for each in (*figures.values(), *(curves.plots for curves in drawn.values())) for plot in each]
    data: dict[str, Any] = {
        # Never a single one, which the script would colour by other rules.
        "runs": [*(setting.label for setting in view.settings), ""],
        "axes": {name: axis for curves in drawn.values() for name, axis in curves.axes.items()},
        "plots": {plot.id: {"traces": plot.traces, "layout": plot.layout} for plot in plots},
    }
    template = files("zephyr_kit.sweep").joinpath("page.html").read_text("utf-8")
    return rendered(template, {}, view=view, figures=figures, curves=drawn, data=data)
