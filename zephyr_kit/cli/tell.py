"""What `zkit run` shows: one screen in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from zephyr_kit import hookimpl
from zephyr_kit.cli.harmless import harmless
from zephyr_kit.cli.screen import Screen
from zephyr_kit.metrics import as_text
from zephyr_kit.observe import Advance, Report, Run
from zephyr_kit.protocols import Evaluation
from zephyr_kit.words import duration

SECONDS_BETWEEN_LINES = 10.0
REDRAWN_PER_SECOND = 2.0
"""What moves; rich's ten take a hundredth of a core from the training."""
WIDEST = 10_000
"""Of a table, in characters."""
SHOWN = {"loss": "loss", "reward/accuracy": "accuracy", "reward/margin": "margin"}


class Teller:
    """A narrator, and an observer of training."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)
        self._screen: Screen | None = None
        self._live: Live | None = None
        self._told = 0.0

    def say(self, text: str) -> None:
        """Print one line."""
        self.console.print(harmless(text), markup=False)

    @contextmanager
    def track(self, label: str, total: int | None = None) -> Iterator[Advance]:
        """Show a piece of work while it lasts."""
        if not self.console.is_terminal:
            yield self._in_lines(label, total)
            return
        with self._bar(transient=True) as progress:
            task = progress.add_task(harmless(label), total=total)
            yield lambda done: progress.update(task, completed=done)

    def _in_lines(self, label: str, total: int | None) -> Advance:
        """A line now and then, for work that takes long."""
        told = time.monotonic()

        def advance(done: int) -> None:
            nonlocal told
            if time.monotonic() - told >= SECONDS_BETWEEN_LINES:
                told = time.monotonic()
                self.say(f"{label}: {done:,}{f' of {total:,}' if total is not None else ''}")

        return advance

    @hookimpl
    def zkit_run_started(self, run: Run) -> None:
        self._told = 0.0
        self._screen = Screen(run)
        if self.console.is_terminal:
            self._live = Live(self._screen, console=self.console, refresh_per_second=REDRAWN_PER_SECOND)
            self._live.start()

    @hookimpl
    def zkit_step_ended(self, run: Run, report: Report) -> None:
        self._screen = self._screen or Screen(run)
        self._screen.add(report)
        if self._live is not None:
            return
        if time.monotonic() - self._told >= SECONDS_BETWEEN_LINES or report.step == report.num_steps:
            self._told = time.monotonic()
            left = self._screen.left
            rest = f"  {duration(round(left))} left" if left is not None else ""
            self.say(f"{run.stage} step {report.step}/{report.num_steps}  {figures(report)}{rest}")

    @hookimpl
    def zkit_held_out(self, run: Run, step: int, metrics: Mapping[str, float]) -> None:
        if self._screen is not None:
            self._screen.look(metrics)
        self.say(f"{run.stage} step {step}/{run.num_steps}  held out: {shown(metrics)}")

    @hookimpl
    def zkit_run_ended(self, run: Run, error: BaseException | None) -> None:
        if self._live is not None:
            self._live.stop()
        self._live = self._screen = None

    def show(self, evaluation: Evaluation) -> None:
        """Print an evaluation as a table, with what its columns mean, and samples."""
        self.console.print()
        left = list(evaluation.columns)
        while left:
            tables = {size: _table(evaluation, left[:size]) for size in range(1, len(left) + 1)}
            size = max((size for size, table in tables.items() if self._width(table) <= self.console.width), default=1)
            self.console.print(tables[size])
            left = left[size:]
        for name, meaning in evaluation.columns.items():
            self.say(f"  {name}: {meaning}")
        for sample in evaluation.samples:
            self._sample(sample)

    def _width(self, table: Table) -> int:
        """In which nothing of it is cut, nor goes on in the next line."""
        return Measurement.get(self.console, self.console.options.update(width=WIDEST), table).maximum

    def _sample(self, sample: Mapping[str, str]) -> None:
        self.say(f"\n  user: {sample['prompt']}")
        for model, reply in sample.items():
            if model != "prompt":
                self.say(f"  {model}: {reply}")

    def _bar(self, *, transient: bool) -> Progress:
        amount = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), *amount)
        return Progress(*columns, console=self.console, transient=transient, refresh_per_second=REDRAWN_PER_SECOND)


def _table(evaluation: Evaluation, columns: Sequence[str]) -> Table:
    table = Table(title=Text(harmless(evaluation.title), "table.title"), title_justify="left")
    table.add_column("model", overflow="fold")
    for name in columns:
        table.add_column(Text(harmless(name)), justify="right", no_wrap=True)
    for model, values in evaluation.rows.items():
        within = evaluation.intervals.get(model, {})
        table.add_row(Text(harmless(model)), *(figure(values.get(name), within.get(name)) for name in columns))
    return table


def figures(report: Report) -> str:
    """The figures of a step that are worth watching, in one line."""
    waited = f"  {report.wait_share:.0%} waiting" if report.wait_seconds else ""
    return f"{shown({'loss': report.loss, **report.metrics})}  {report.tokens_per_second:,.0f} tokens/s{waited}"


def shown(metrics: Mapping[str, float]) -> str:
    """The metrics that are worth watching."""
    return "  ".join(f"{name} {as_text(metrics[key])}" for key, name in SHOWN.items() if key in metrics)


def figure(value: float | None, interval: tuple[float, float] | None = None) -> str:
    """A cell of a table, with the interval that the value lies in below it."""
    told = "–" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
    return told if interval is None else f"{told}\n({interval[0]:.3f} – {interval[1]:.3f})"
