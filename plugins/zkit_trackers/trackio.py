"""Trackio: a database on this machine, or a Space on Hugging Face. See it with `trackio show`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zephyr_kit.observe import Run
from zkit_trackers.reach import identity, missing, remote, title


@dataclass(frozen=True)
class Trackio:
    """Trackio: a run for each stage, those of one folder in one group."""

    project: str = "zephyr-kit"
    space: str | None = None
    """`owner/name` of a Space on Hugging Face for the figures, made private if it is new; what TRACKIO_SPACE_ID says, unless given."""

    def problems(self) -> Sequence[str]:
        """See `protocols.Tracker`."""
        return missing("trackio")

    def destination(self) -> str | None:
        """See `protocols.Tracker`."""
        server = os.environ.get("TRACKIO_SERVER_URL")  # trackio heeds it of itself
        return f"https://huggingface.co/spaces/{self._space}" if self._space else remote(server) if server else None

    def open(self, run: Run) -> Session:
        """See `protocols.Tracker`."""
        import trackio

        session = trackio.init(
            project=self.project,
            name=f"{title(run)} {identity(run)[:8]}",
            group=run.folder.parent.name,
            space_id=self._space,
            config={key: str(value) for key, value in run.settings.items()},
            resume="allow",
            private=True if self._space else None,
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        return Session(session)

    @property
    def _space(self) -> str | None:
        # Trackio heeds this of itself too, and would make the Space public.
        return self.space or os.environ.get("TRACKIO_SPACE_ID") or None


@dataclass(frozen=True)
class Session:
    """A run of Trackio."""

    session: Any

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """See `protocols.Track`."""
        self.session.log(dict(figures), step=step)

    def close(self, error: BaseException | None) -> None:
        """See `protocols.Track`."""
        self.session.finish()
