"""`zkit` in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO

from zephyr_kit.exits import Exit
from zephyr_kit.launched import tie_to
from zephyr_kit.stopping import Stopped

ERROR = "error: "
"""How `zkit` begins to tell what the user can mend."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process has ended."""

    code: int
    reason: str = ""
    """Why, where that is not well."""


def zkit(arguments: Sequence[str]) -> Ended:
    """Run `zkit` with these arguments to its end; asked to stop meanwhile, have it stop in order, and pass the request on.

    Where this process is killed, nobody is left to pass it on: on Linux it is then asked by the system.
    """
    told: list[str] = []
    command = [sys.executable, "-m", "zephyr_kit", *arguments]
    with subprocess.Popen(  # noqa: S603  zkit itself
        command,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        preexec_fn=tie_to(os.getpid(), signal.SIGTERM),  # noqa: PLW1509  this process has no threads of Python's
    ) as child:
        assert child.stderr is not None
        try:
            _pass_on(child.stderr, told)
        except Stopped:
            child.send_signal(signal.SIGTERM)
            _pass_on(child.stderr, told)
            raise
        code = child.wait()
    return Ended(code, _reason(code, told) if code else "")


def _pass_on(stream: IO[str], told: list[str]) -> None:
    for line in stream:
        told.append(line.rstrip("\n"))
        sys.stderr.write(line)
        sys.stderr.flush()


def _reason(code: int, told: Sequence[str]) -> str:
    """The error that it told of last, or what its exit code means."""
    first = max((number for number, line in enumerate(told) if line.startswith(ERROR)), default=None)
    if first is not None:
        return "\n".join(told[first:]).removeprefix(ERROR)
    if code < 0:
        return f"ended by signal {-code} ({signal.strsignal(-code)})"
    meaning = next((each.meaning for each in Exit if each == code), None)
    return f"exit code {code}, {meaning}" if meaning and code != Exit.CANNOT else next(reversed(told), f"exit code {code}")
