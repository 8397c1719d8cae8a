"""Signs of life that a rank gives to who has started it.

    FOLDER/RANK.beat      written anew every few seconds, and after each step that is reported: how many were taken, and of which stage
    FOLDER/RANK.stacks    what every thread was doing, each time that it was asked (SIGUSR2); where an error arose that nobody foresaw
    FOLDER/RANK.failed    why the rank has ended, if it has failed
    FOLDER/broken         a rank has ended and the others are being ended; written by who has started them
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

FOLDER, LAUNCHER = "ZKIT_SIGNS", "ZKIT_LAUNCHER"
"""Environment variables: where signs of life go, and the process that looks for them."""
SECONDS_BETWEEN_BEATS = 2.0


class Heart:
    """Beats in a thread of its own: a process that is stopped, or starved, no longer does."""

    def __init__(self, signs: Signs) -> None:
        self.signs = signs
        self._step = ""
        self._stop = Event()

    def took(self, stage: str, step: int) -> None:
        """So many steps of a stage; told at once, for whoever counts starts that came to nothing must not miss one."""
        self._step = f"{step} {stage}"
        self._tell()

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Beat, and write down every thread's stack when asked to."""
        thread = Thread(target=self._beat, name="zkit-heart", daemon=True)
        with self.signs.stacks.open("a", encoding="utf-8") as stacks:
            faulthandler.register(signal.SIGUSR2, file=stacks, all_threads=True)
            thread.start()
            try:
                yield
            finally:
                self._stop.set()
                thread.join()
                faulthandler.unregister(signal.SIGUSR2)

    def _beat(self) -> None:
        while True:
            self._tell()
            if self._stop.wait(SECONDS_BETWEEN_BEATS):
                return

    def _tell(self) -> None:
        with suppress(OSError):  # a full disk is told by who writes what matters
            self.signs.beat.write_text(self._step, "utf-8")


@dataclass(frozen=True, slots=True)
class Signs:
    """The signs of one rank."""

    folder: Path
    rank: int

    @property
    def beat(self) -> Path:
        return self.folder / f"{self.rank}.beat"

    @property
    def stacks(self) -> Path:
        return self.folder / f"{self.rank}.stacks"

    @property
    def failed(self) -> Path:
        return self.folder / f"{self.rank}.failed"

    @property
    def broken(self) -> Path:
        return self.folder / "broken"

    def last_beat(self) -> int | None:
        """When it was, in nanoseconds by the clock of the disk, which no other goes by; None before the first one."""
        with suppress(FileNotFoundError):
            return self.beat.stat().st_mtime_ns
        return None

    def step(self) -> tuple[int, str]:
        """How many steps were taken, as far as it is known, and of which stage."""
        with suppress(FileNotFoundError, ValueError):
            step, stage = self.beat.read_text("utf-8").split(" ", 1)
            return int(step), stage
        return 0, ""

    def note_failure(self, cause: str, where: str = "") -> None:
        """Write down why this rank ends, and for a reader where the error arose."""
        self.failed.write_text(json.dumps({"time": time.time(), "cause": cause}), "utf-8")
        with self.stacks.open("a", encoding="utf-8") as stacks:
            stacks.write(where)

    def failure(self) -> tuple[float, str] | None:
        """When, and why, the rank has ended."""
        with suppress(FileNotFoundError, ValueError, KeyError):
            told = json.loads(self.failed.read_text("utf-8"))
            return float(told["time"]), str(told["cause"])
        return None

    def clear(self) -> None:
        """Forget them, but not what was written for a reader."""
        for file in (self.beat, self.failed, self.broken):
            file.unlink(missing_ok=True)


class Listener:
    """What who has started ranks remembers of their beats.

    By a clock that nobody sets, and that stands while the machine sleeps: the time may jump, and be another on the disk.
    """

    def __init__(self) -> None:
        self._heard: dict[int, tuple[int, float]] = {}

    def silent_for(self, signs: Signs) -> float:
        """Seconds since a rank's last beat was first seen; 0 before there was one."""
        beat, now = signs.last_beat(), time.monotonic()
        if beat is None:
            return 0.0
        if signs.rank not in self._heard or self._heard[signs.rank][0] != beat:
            self._heard[signs.rank] = beat, now
        return now - self._heard[signs.rank][1]


def own_signs() -> Signs | None:
    """Of this process, if whoever has started it wants any."""
    folder, rank = os.environ.get(FOLDER), os.environ.get("RANK")
    return Signs(Path(folder), int(rank)) if folder and rank else None
