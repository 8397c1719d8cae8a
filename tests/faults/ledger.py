"""Which rows each step was taken with, noted by the run itself."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .hits import replace


@dataclass(frozen=True)
class Noting:
    """Notes step and rows as soon as a step has been taken."""

    file: Path

    def __call__(self) -> None:
        rows: dict[int, list[int]] = {}

        def remember(step: Any) -> Any:
            def remembering(feed: Any, indices: Any) -> Any:
                work = step(feed, indices)
                rows[id(work.works)] = [int(index) for index in indices]
                return work

            return remembering

        def note(step: Any) -> Any:
            def noting(trainer: Any, work: Any) -> Any:
                number = trainer.num_steps_taken
                totals = step(trainer, work)
                if id(work.works) in rows:
                    with self.file.open("a") as file:
                        file.write(json.dumps([number, rows[id(work.works)]]) + "\n")
                return totals

            return noting

        replace("zephyr_kit.feed:Feed.step", remember)
        replace("zephyr_kit.engine:Trainer.step", note)


def rows_trained(file: Path) -> dict[int, list[int]]:
    """The rows of each step, those that were taken again once: what came of them was lost with the process."""
    lines = (json.loads(line) for line in file.read_text().split("\n")[:-1])
    return dict(sorted({step: rows for step, rows in lines}.items()))  # noqa: C416  the later one holds
