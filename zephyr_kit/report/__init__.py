"""The report of one or more runs: facts gathered once (`zephyr_kit.facts`), and written as a page or as Markdown."""

from zephyr_kit.report.writing import FORMATS, write_reports

__all__ = ["FORMATS", "write_reports"]
