"""Being asked to stop, by a signal or by the clock.

All that a run writes is there whole or not at all, so it may be left anywhere, at once. Only a
step of training under way is worth waiting for: the loop finishes it, saves, and leaves.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from zephyr_kit.exits import Exit
from zephyr_kit.launched import is_a_rank

SIGNALS = {
    signal.SIGHUP: Exit.HANGUP,
    signal.SIGINT: Exit.INTERRUPTED,
    signal.SIGTERM: Exit.TERMINATED,
    signal.SIGUSR1: Exit.WARNED,
    signal.SIGALRM: Exit.TIME,
}
"""What each asks for; the clock rings by SIGALRM."""
SECONDS_APART = 0.5
"""A terminal and a wrapper may both pass one Ctrl-C on."""


def signal_of(code: Exit) -> signal.Signals:
    """That which asks for this end."""
    return next(number for number, each in SIGNALS.items() if each is code)


class Stopped(BaseException):
    """The run leaves, as it was asked to. No `Exception`: what puts up with any error must not put up with this."""

    def __init__(self, code: Exit, *, begun: bool = True) -> None:
        super().__init__(code.meaning if begun else f"{code.meaning.partition(';')[0]} before it had begun")
        self.exit = code


class Stop:
    """Whether somebody has asked the run to stop; `silent` where whoever has started this process tells of it."""

    def __init__(self, *, silent: bool = False) -> None:
        self._silent = silent
        self._heard: list[signal.Signals] = []
        self._asked: Exit | None = None
        self._since = 0.0
        self._waits = False
        self._until = ""

    def requested(self) -> Exit | None:
        """For what reason, if it is to stop; asked after each step, and where ranks will agree on it."""
        return self._asked

    def check(self) -> None:
        """Leave if it is to stop."""
        asked = self.requested()
        if asked is not None:
            raise Stopped(asked)

    @contextmanager
    def later(self, until: str) -> Iterator[None]:
        """Within it, a request waits until somebody asks, or until it ends; which the user is told in these words."""
        self._waits, self._until = True, until
        try:
            yield
        finally:
            self._waits = False
        self.check()

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within the loop, for what can be begun again: a request does not wait."""
        waits, self._waits = self._waits, False
        try:
            self.check()
            yield
        finally:
            self._waits = waits

    @contextmanager
    def listening(self, seconds: float | None = None) -> Iterator[None]:
        """Hear signals, and the clock after so many seconds; what was ignored before, as under nohup, stays ignored."""
        with self.starting(seconds):
            self.begin()
            yield

    @contextmanager
    def starting(self, seconds: float | None = None) -> Iterator[None]:
        """The same, but that a request ends this process at once, in whatever library it is, until the work begins."""
        before = {number: signal.getsignal(number) for number in SIGNALS}
        self._heard = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
        # Where ranks wait for each other, no handler of Python's is called.
        self._answer(signal.SIG_DFL if is_a_rank() else _leave)
        told, sys.unraisablehook = sys.unraisablehook, self._but_for_requests(sys.unraisablehook)
        left = signal.setitimer(signal.ITIMER_REAL, seconds) if seconds is not None else None
        try:
            yield
        finally:
            sys.unraisablehook = told
            if left is not None:
                signal.setitimer(signal.ITIMER_REAL, *left)
            for number in self._heard:
                signal.signal(number, before[number])

    def begin(self) -> None:
        """From now on there is something to lose."""
        self._answer(self._hear)

    def _answer(self, handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
        for number in self._heard:
            signal.signal(number, handler)

    def _but_for_requests(self, tell: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """A request that comes in the middle of a destructor cannot leave from there: it is remembered, and nothing to tell of."""
        return lambda lost: None if isinstance(lost.exc_value, Stopped) else tell(lost)

    def _hear(self, number: int, _: FrameType | None) -> None:
        if self._asked is None:
            self._asked, self._since = SIGNALS[signal.Signals(number)], time.monotonic()
            if not self._waits:
                raise Stopped(self._asked)
            if not self._silent:
                again = " again" if number == signal.SIGINT else ""
                _tell(f"stopping when {self._until}; Ctrl-C{again} leaves at once")
        elif number == signal.SIGINT and time.monotonic() - self._since > SECONDS_APART:
            _tell("left at once; the same command goes on after the last checkpoint")
            os._exit(self._asked)


def _leave(number: int, _: FrameType | None) -> None:
    stopped = Stopped(SIGNALS[signal.Signals(number)], begun=False)
    _tell(str(stopped))
    os._exit(stopped.exit)


def _tell(text: str) -> None:
    # Not print, which must not be entered twice: the signal may have come in the middle of one. Whoever read it may be gone.
    with suppress(OSError):
        os.write(2, f"\n{text}\n".encode())
