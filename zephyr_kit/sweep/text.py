"""A sweep as Markdown."""

from __future__ import annotations

from zephyr_kit.markdown import table
from zephyr_kit.sweep.view import View


def text(view: View) -> str:
    """How each run ended, what was shared, and a table for each stage."""
    lines = [f"# {view.title}", "", f"{view.summary}.", ""]
    lines += [f"- `{one.combination.name}` {one.state}: {one.reason}" for one in view.failures]
    for stage in view.stages:
        lines += ["", f"## Stage {stage}", "", view.made(stage), "", *table(*view.table(stage))]
    return "\n".join([*lines, "", "## Runs", "", *table(*view.runs), ""])
