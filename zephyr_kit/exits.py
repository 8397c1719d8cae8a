"""How `zkit` ends: the code that a shell or a scheduler sees, and what it means."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """An exit code; those of signals are 128 and the signal's number, as shells have it."""

    DONE = 0
    CANNOT = 1
    NOT_UNDERSTOOD = 2
    CHANGED = 3
    DISK = 4
    NUMBERS = 5
    BAD_DATA = 6
    TIME = 75
    HANGUP = 129
    INTERRUPTED = 130
    WARNED = 138
    TERMINATED = 143

    @property
    def meaning(self) -> str:
        """In words."""
        return MEANINGS[self]


MEANINGS = {
    Exit.DONE: "done",
    Exit.CANNOT: "cannot be done here; the message says why",
    Exit.NOT_UNDERSTOOD: "the command line, a preset or its name was not understood",
    Exit.CHANGED: "what the run was begun with has changed; see --accept",
    Exit.DISK: "the disk is full, or files cannot be written or read; what was saved stands",
    Exit.NUMBERS: "losses or gradients are not finite; the last checkpoint stands",
    Exit.BAD_DATA: "more of the data is bad than is allowed",
    Exit.TIME: "--max-time is over; all is saved, and the same command goes on",
    Exit.HANGUP: "stopped by SIGHUP; all is saved, and the same command goes on",
    Exit.INTERRUPTED: "stopped by SIGINT (Ctrl-C); all is saved, and the same command goes on",
    Exit.WARNED: "stopped by SIGUSR1, a scheduler's warning; all is saved, and the same command goes on",
    Exit.TERMINATED: "stopped by SIGTERM; all is saved, and the same command goes on",
}


def table() -> list[str]:
    """A line for each code."""
    return [f"{code:>3}  {code.meaning}" for code in Exit]
