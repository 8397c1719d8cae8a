"""`zkit run` in a process of its own, which a server has forked that holds every library already."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import forked
from forked import Forked, Prepare

from .job import Job

SECONDS = 120.0


@dataclass(frozen=True)
class Going:
    """A run under way."""

    process: Forked
    output: Path

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    @property
    def said(self) -> str:
        return self.process.said

    def send(self, number: int) -> None:
        """To the whole process group, as a scheduler does."""
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:  # not begun, or over
            if self.is_alive:
                self.process.send_signal(number)

    def kill(self) -> bool:
        """Whether it was alive."""
        self.send(signal.SIGKILL)
        return self.end() == -signal.SIGKILL

    def end(self) -> int:
        """The exit code."""
        return self.process.wait(SECONDS)


def start(job: Job, output: Path, *options: str, prepare: Prepare | None = None, cache: Path | None = None) -> Going:
    arguments = ["run", str(job.preset), "--output", str(output), *options]
    environment = {**os.environ, **({"ZKIT_CACHE": str(cache)} if cache else {})}
    return Going(forked.start(arguments, output.with_name(f"{output.name}.log"), prepare=prepare, environment=environment), output)


def finish(job: Job, output: Path, *options: str, code: int = 0, prepare: Prepare | None = None, cache: Path | None = None) -> str:
    """Run to the end; what was said."""
    going = start(job, output, *options, prepare=prepare, cache=cache)
    assert going.end() == code, going.said
    return going.said


def wait_for(condition: Callable[[], bool], going: Going, *, every: float = 0.002, seconds: float = SECONDS) -> bool:
    """Until it holds, or the run is over."""
    until = time.monotonic() + seconds
    while going.is_alive and time.monotonic() < until:
        if condition():
            return True
        time.sleep(every)
    return condition()
