"""Reports as files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from zephyr_kit.facts import RunFacts, read_run
from zephyr_kit.records import write_text
from zephyr_kit.report.page import page
from zephyr_kit.report.text import MARK, text

FORMATS: Mapping[str, Callable[[Sequence[RunFacts]], str]] = {"html": page, "md": text}
"""By the ending of the file."""
MARKS = (MARK.encode(), b'<meta name="generator" content="zephyr-kit report">')
AT_AN_END = 4096
"""Bytes, within which a mark stands."""


def is_report(path: Path) -> bool:
    """Whether a file is a report that was written here, of whichever runs."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        begin = file.read(AT_AN_END)
        file.seek(max(0, path.stat().st_size - AT_AN_END))
        return any(mark in part for mark in MARKS for part in (begin, file.read()))


def write_reports(folder: Path) -> list[Path]:
    """Write the report of a run into its folder, in each format."""
    runs = [read_run(folder)]
    written = []
    for ending, render in FORMATS.items():
        written.append(folder / f"report.{ending}")
        write_text(written[-1], render(runs))
    return written
