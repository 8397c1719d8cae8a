"""How `zkit` ends: the code that a shell or a scheduler sees, and what it means."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """An exit code; those of signals are 128 and the signal's number, as shells have it."""

    meaning: str

    def __new__(cls, code: int, meaning: str) -> Exit:
        """A member that knows what it means."""
        member = int.__new__(cls, code)
        member._value_ = code
        member.meaning = meaning
        return member

    DONE = 0, "done"
    CANNOT = 1, "cannot be done here; the message says why"
    NOT_UNDERSTOOD = 2, "the command line, a preset or its name was not understood"
    CHANGED = 3, "what the run was begun with has changed; see --accept"
    DISK = 4, "the disk is full, or files cannot be written or read; what was saved stands"
    NUMBERS = 5, "losses or gradients are not finite; the last checkpoint stands"
    BAD_DATA = 6, "more of the data is bad than is allowed"
    CRASHED = 70, "a rank was ended by an error that nobody foresaw, again and again"
    TIME = 75, "--max-time is over; all is saved, and the same command goes on"
    HANGUP = 129, "stopped by SIGHUP; all is saved, and the same command goes on"
    INTERRUPTED = 130, "stopped by SIGINT (Ctrl-C); all is saved, and the same command goes on"
    WARNED = 138, "stopped by SIGUSR1, a scheduler's warning; all is saved, and the same command goes on"
    TERMINATED = 143, "stopped by SIGTERM; all is saved, and the same command goes on"


def table() -> list[str]:
    """A line for each code."""
    return [f"{code.value:>3}  {code.meaning}" for code in Exit]
