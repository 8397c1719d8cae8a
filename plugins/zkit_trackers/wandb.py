"""Weights & Biases."""

from __future__ import annotations

import netrc
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from zephyr_kit.observe import Run
from zkit_trackers.reach import identity, missing, remote, title

SERVER = "https://api.wandb.ai"


@dataclass(frozen=True)
class WandB:
    """Weights & Biases: a run for each stage, those of one folder in one group. Neither code nor machine nor output is sent."""

    project: str = "zephyr-kit"
    entity: str | None = None
    """The team; your own, unless given."""
    mode: Literal["online", "offline"] | None = None
    """`offline` keeps the figures beside the stage, for `wandb sync`; what WANDB_MODE says, unless given, or else `online`."""

    def problems(self) -> Sequence[str]:
        """See `protocols.Tracker`."""
        lack = missing("wandb")
        if lack or not self._is_online or os.environ.get("WANDB_API_KEY") or _is_in_netrc(self._server):
            return lack
        return [f'nobody is logged in to {self._server}: wandb login, or set WANDB_API_KEY, or mode = "offline"']

    def destination(self) -> str | None:
        """See `protocols.Tracker`."""
        return remote(self._server) if self._is_online else None

    def open(self, run: Run) -> Session:
        """See `protocols.Tracker`."""
        import wandb

        settings = wandb.Settings(
            console="off",
            disable_code=True,
            disable_git=True,
            disable_job_creation=True,
            quiet=True,
            silent=True,
            x_disable_machine_info=True,
            x_disable_meta=True,
            x_disable_stats=True,
        )
        session = wandb.init(
            project=self.project,
            entity=self.entity,
            mode=self._mode,
            dir=str(run.folder),
            id=identity(run),
            resume="allow" if self._is_online else None,
            name=title(run),
            group=run.folder.parent.name,
            job_type=run.stage,
            config=dict(run.settings),
            reinit="create_new",
            settings=settings,
        )
        # A metric of its own: steps that are taken again after a crash would be refused as W&B's.
        session.define_metric("*", step_metric="step")
        return Session(session)

    @property
    def _mode(self) -> Any:
        return self.mode or os.environ.get("WANDB_MODE") or "online"

    @property
    def _is_online(self) -> bool:
        return bool(self._mode not in ("offline", "disabled"))

    @property
    def _server(self) -> str:
        return os.environ.get("WANDB_BASE_URL") or SERVER


@dataclass(frozen=True)
class Session:
    """A run of W&B."""

    session: Any

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """See `protocols.Track`."""
        self.session.log({**figures, "step": step})

    def close(self, error: BaseException | None) -> None:
        """See `protocols.Track`."""
        self.session.finish(exit_code=0 if error is None else 1)


def _is_in_netrc(server: str) -> bool:
    with suppress(OSError, netrc.NetrcParseError):
        return netrc.netrc(os.environ.get("NETRC")).authenticators(urlsplit(server).hostname or "") is not None
    return False
