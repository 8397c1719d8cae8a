"""TensorBoard: files beside the run. See them with `tensorboard --logdir runs`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from zephyr_kit.observe import Run
from zkit_trackers.reach import missing, title

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


@dataclass(frozen=True)
class TensorBoard:
    """Event files of TensorBoard."""

    folder: str | None = None
    """For all runs; beside the stage's own files, unless given."""

    def problems(self) -> Sequence[str]:
        """See `protocols.Tracker`."""
        return missing("tensorboard")

    def destination(self) -> str | None:
        """See `protocols.Tracker`."""
        return None

    def open(self, run: Run) -> Events:
        """See `protocols.Tracker`."""
        from torch.utils.tensorboard import SummaryWriter

        place = Path(self.folder) / title(run) if self.folder else run.folder / "tensorboard"
        # Steps that are taken again after a crash replace those that were lost.
        writer = SummaryWriter(str(place), purge_step=run.first_step + 1 if run.first_step else None)
        writer.add_text("settings", f"```json\n{json.dumps(dict(run.settings), indent=1, default=str)}\n```", run.first_step)
        return Events(writer)


@dataclass(frozen=True)
class Events:
    """The event files of a stage."""

    writer: SummaryWriter

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """See `protocols.Track`."""
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)

    def close(self, error: BaseException | None) -> None:
        """See `protocols.Track`."""
        self.writer.close()
