"""How fast requests follow each other."""

from __future__ import annotations

from dataclasses import dataclass, field
from threading import Event, Lock
from time import monotonic


@dataclass
class Pace:
    """Evenly spaced turns for many threads: at most `per_minute` of them, and none while all are told to hold."""

    per_minute: int = 0
    """0 is no limit."""
    _next: float = 0.0
    _lock: Lock = field(default_factory=Lock)

    def wait(self, stop: Event) -> None:
        """Wait for a turn, or until `stop` is set."""
        with self._lock:
            turn = max(monotonic(), self._next)
            self._next = turn + (60 / self.per_minute if self.per_minute else 0.0)
        stop.wait(turn - monotonic())

    def hold(self, seconds: float) -> None:
        """Give no turn for so long: the endpoint has had enough of everybody, not of one thread."""
        with self._lock:
            self._next = max(self._next, monotonic() + seconds)
