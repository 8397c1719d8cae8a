"""Reports as files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from zephyr_kit.facts import RunFacts, read_run
from zephyr_kit.records import write_text
from zephyr_kit.report.page import page
from zephyr_kit.report.text import text

FORMATS: Mapping[str, Callable[[Sequence[RunFacts]], str]] = {"html": page, "md": text}
"""By the ending of the file."""


def write_reports(folder: Path) -> list[Path]:
    """Write the report of a run into its folder, in each format."""
    runs = [read_run(folder)]
    written = []
    for ending, render in FORMATS.items():
        written.append(folder / f"report.{ending}")
        write_text(written[-1], render(runs))
    return written
