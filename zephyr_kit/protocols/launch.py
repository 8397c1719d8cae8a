"""Who starts a run's processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Job:
    """`zkit run` on several devices: a process for each, told its place as torch's launchers tell it."""

    name: str
    arguments: tuple[str, ...]
    """Of `zkit`, the same for every process."""
    folder: Path
    """The run's; logs go below it."""
    device: str
    """`cpu` or `cuda`."""
    devices: int
    """Of each machine."""
    nodes: int = 1
    fewest_nodes: int = 1
    """With how many machines the run goes on when others are lost."""
    rendezvous: str | None = None
    """`HOST:PORT` where the machines meet; None for one machine."""
    in_turn: bool = False
    """Whether it begins only when those of its name have ended that were handed in before."""


class Launcher(Protocol):
    """A way to start a job."""

    def problems(self, job: Job) -> Sequence[str]:
        """Why it cannot start the job from here; empty if it can."""
        ...

    def launch(self, job: Job, say: Callable[[str], None]) -> int:
        """Start it, or hand it in to who will; the exit code, where it waits for the end, or a `ZkitError` that says why it failed."""
        ...
