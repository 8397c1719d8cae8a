"""The report of one or more runs: facts gathered once (`zephyr_kit.facts`), and written as a page or as Markdown."""

from zephyr_kit.report.writing import FORMATS, is_report, write_reports

__all__ = ["FORMATS", "is_report", "write_reports"]
