"""The report as Markdown: the same figures as the page, without its plots."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from zephyr_kit.facts import RunFacts, StageFacts
from zephyr_kit.markdown import table
from zephyr_kit.report import phrases
from zephyr_kit.report.plots import Plot
from zephyr_kit.report.views import View

MARK = "<!-- zephyr-kit report -->"
"""Not to be seen where Markdown is shown."""


def text(runs: Sequence[RunFacts]) -> str:
    """The page as Markdown."""
    view = View(runs)
    return "\n".join([f"# {view.title}", "", *_lines(view), MARK, ""])


def _lines(view: View) -> Iterator[str]:
    for run in view.runs:
        yield from _run(run, several=len(view.runs) > 1)
    if view.differences:
        yield from ("## Where the presets differ", "", *table(("key", *view.labels), phrases.settings_that_differ(view.differences)), "")
    for name, plots in view.curves.items():
        yield from (f"## Curves of {name}", "", *_milestones(plots))
    for measured in view.measured:
        yield from (f"## {measured.title}", "", *table(*phrases.measures(measured)), "")
        yield from (*(f"- {name}: {meaning}" for name, meaning in measured.of_runs[0][2].columns.items()), "")
    for title, answers in view.answers.items():
        yield from (f"## Answers of {title}", "")
        for answer in answers:
            yield from (*(f"> {line}" for line in _literal(answer.prompt).splitlines()), "")
            yield from (*(f"- **{model}**: {' '.join(_literal(reply).split())}" for model, reply in answer.replies), "")


def _literal(text: str) -> str:
    """What others wrote: Markdown takes HTML as it stands."""
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _run(run: RunFacts, *, several: bool) -> Iterator[str]:
    if several:
        yield from (f"## {run.label}", "")
    if run.description:
        yield from (run.description, "")
    yield from (f"In `{run.folder}`, {phrases.sentence(run)}.", "")
    yield from (*table(*phrases.costs(run)), "")
    if run.troubles:
        yield from ("What was skipped or went wrong:", "")
        yield from (*(f"- {f'**{one.stage}**: ' if one.stage else ''}{' '.join(one.text.split())}" for one in run.troubles), "")
    for stage in run.stages:
        yield from _stage(stage, run.label if several else "")


def _stage(stage: StageFacts, run: str) -> Iterator[str]:
    yield from (f"### {f'{run}: ' if run else ''}stage {stage.name}, {stage.state}", "")
    yield from (*table(("", ""), phrases.lineage(stage)), "")
    if stage.ledgers:
        yield from (*table(*phrases.ledger(stage)), "")
    for rows in phrases.filtered(stage):
        yield from (*table(("filter", "seen", "removed", "changed"), rows), "")
    for title, found in phrases.reasons(stage):
        yield from (f"{title}: " + "; ".join(f"{count:,} {reason}" for reason, count in list(found.items())[:4]), "")
    if stage.agreements:
        head = ("judges", "cases", "pairs without a tie", "in the same order", "ties", "the same best")
        yield from (*table(head, phrases.agreements(stage)), "")


def _milestones(plots: Sequence[Plot]) -> Iterator[str]:
    rows = [[f"{plot.title}{f', {row[0]}' if len(plot.rows) > 1 else ''}", *row[1:]] for plot in plots for row in plot.rows]
    yield from (*table(plots[0].head, rows), "")
