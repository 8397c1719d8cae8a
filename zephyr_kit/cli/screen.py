"""What a terminal shows while a stage trains: how far it is, how fast, in how much memory, and its curves."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from zephyr_kit.cli.sparkline import sparkline
from zephyr_kit.metrics import HELD_OUT, as_text
from zephyr_kit.observe import Report, Run
from zephyr_kit.sizes import in_words
from zephyr_kit.words import duration

CURVES = {
    "loss": "loss",
    "held_out/loss": "held-out loss",
    "reward/margin": "margin",
    "reward/accuracy": "accuracy",
    "gradient_norm": "gradient norm",
    "learning_rate": "learning rate",
}
"""Metrics whose curves are shown, where a stage has them."""
WIDTH = 48
"""Characters of a curve."""
MOST_KEPT = 4096
"""Values of a curve; of longer ones every second is kept, then every fourth, and so on."""
RECENT = 0.9
"""How much of the speed so far counts, each time that a step is told."""


@dataclass
class Curve:
    """The values of a metric, thinned out where there are many."""

    values: list[float] = field(default_factory=list)
    last: float = 0.0
    _every: int = 1
    _count: int = 0

    def add(self, value: float) -> None:
        """One more."""
        self.last = value
        if self._count % self._every == 0:
            self.values.append(value)
        self._count += 1
        if len(self.values) >= MOST_KEPT:
            del self.values[1::2]
            self._every *= 2


class Screen:
    """The picture of one stage; rich asks it for its lines, and draws them anew."""

    def __init__(self, run: Run, *, clock: Callable[[], float] = time.monotonic, memory: Callable[[], str] | None = None) -> None:
        self.run = run
        self._clock, self._memory = clock, memory or memory_in_use
        self._began = self._at = clock()
        self._step, self._epoch = run.first_step, 0.0
        self._tokens_per_second, self._seconds_per_step = 0.0, 0.0
        self._curves: dict[str, Curve] = {}

    def add(self, report: Report) -> None:
        """A step was taken."""
        if report.tokens_per_second:
            # Steps are told some at a time: the speed is that of them all, while the time between two tellings is that of none.
            latest = report.num_tokens / report.tokens_per_second
            self._seconds_per_step = RECENT * self._seconds_per_step + (1 - RECENT) * latest if self._seconds_per_step else latest
        self._at, self._step, self._epoch = self._clock(), report.step, report.epoch
        self._tokens_per_second = report.tokens_per_second
        values = {"loss": report.loss, **report.metrics, "gradient_norm": report.gradient_norm, "learning_rate": report.learning_rate}
        self._note(values)

    def look(self, metrics: Mapping[str, float]) -> None:
        """Held-out data was looked at."""
        self._note({f"{HELD_OUT}{name}": value for name, value in metrics.items()})

    def _note(self, values: Mapping[str, float]) -> None:
        for name in CURVES:
            if name in values:
                self._curves.setdefault(name, Curve()).add(values[name])

    @property
    def left(self) -> float | None:
        """Seconds that the steps to come will take; saves, and looks at held-out data, come on top."""
        if not self._seconds_per_step or self._step >= self.run.num_steps:
            return None
        return max(0.0, (self.run.num_steps - self._step) * self._seconds_per_step - (self._clock() - self._at))

    def __rich__(self) -> RenderableType:
        lines: list[RenderableType] = [self._head(), self._progress()]
        if self._curves:
            lines.append(self._drawn())
        return Group(*lines)

    def _head(self) -> RenderableType:
        text = Text.assemble((self.run.stage, "bold"), f"  of {self.run.name}  step {self._step:,}/{self.run.num_steps:,}")
        text.append(f"  epoch {self._epoch:.2f}" if self._epoch else "")
        return text

    def _progress(self) -> RenderableType:
        line = Table.grid(padding=(0, 2))
        speed = f"{self._tokens_per_second:,.0f} tokens/s" if self._tokens_per_second else ""
        left = "" if self.left is None else f"{duration(round(self.left))} left"
        told = [speed, f"{duration(round(self._clock() - self._began))} gone", left, self._memory()]
        bar = ProgressBar(self.run.num_steps, self._step, width=24)
        line.add_row(bar, *(Text(part, no_wrap=True) for part in told if part))
        return line

    def _drawn(self) -> RenderableType:
        table = Table.grid(padding=(0, 2))
        for _ in range(2):
            table.add_column(justify="left", no_wrap=True)
        table.add_column(justify="right", no_wrap=True)
        for name, label in CURVES.items():
            if name in self._curves:
                curve = self._curves[name]
                table.add_row(label, Text(sparkline(curve.values, WIDTH), style="cyan"), as_text(curve.last))
        return table


def memory_in_use() -> str:
    """Of the device where there is a GPU in use, else of this process: now, and at the most so far."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        most = torch.cuda.max_memory_allocated()
        whole = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        return f"{in_words(torch.cuda.memory_allocated())} now, {in_words(most)} at the most, of {in_words(whole)}"
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    now = _resident()
    return f"{in_words(now)} now, {in_words(most)} at the most" if now else f"{in_words(most)} at the most"


def _resident() -> int:
    """Bytes of this process in memory; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0

