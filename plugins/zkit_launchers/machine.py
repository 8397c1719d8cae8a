"""One machine of a cluster, whose scheduler starts a process there: that starts `zkit run`, and `zkit run` the ranks."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event

from zephyr_kit.exits import Exit
from zephyr_kit.heartbeat import FOLDER, LAUNCHER, Signs
from zephyr_kit.launched import RANK


@dataclass(frozen=True, slots=True)
class Ended:
    """How `zkit run` has ended on a machine."""

    code: int
    """Its exit code; below 0, the signal that ended it."""
    told: str
    """Why, in its own words, if it has failed or was stopped."""

    @property
    def exit(self) -> Exit | None:
        """What it has chosen, and would choose again; None where it was ended."""
        return {int(code): code for code in Exit}.get(self.code)


class Machine:
    """Lives in a process of the cluster's; asked from several threads."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._process: subprocess.Popen[bytes] | None = None
        self._started = Event()

    def address(self) -> str:
        """By which the other machines reach it."""
        from ray.util import get_node_ip_address

        return str(get_node_ip_address())

    def run(self, arguments: tuple[str, ...], environment: Mapping[str, str], folder: Path) -> Ended:
        """Run `zkit`, with these arguments, in a folder, until it ends."""
        with TemporaryDirectory(prefix="zkit-") as place:
            signs = Signs(Path(place), self._number)
            # As a rank: it leaves word of why it ends, and ends when this process does.
            own = {FOLDER: place, LAUNCHER: str(os.getpid()), RANK: str(self._number)}
            command = [sys.executable, "-m", "zephyr_kit", *arguments]
            try:
                with _hearing_all():
                    self._process = subprocess.Popen(command, env={**os.environ, **environment, **own}, cwd=folder)  # noqa: S603  our own
            except OSError as error:
                return Ended(Exit.CANNOT, f"{socket.gethostname()}: cannot start zkit in {folder}: {error.strerror}; all machines share it")
            self._started.set()
            code = self._process.wait()
            _, told = signs.failure() or (0, f"zkit on {socket.gethostname()} ended with code {code}" if code else "")
            return Ended(code, told)

    def send(self, number: int) -> None:
        """Send the signal to `zkit`, once it is there."""
        self._started.wait()
        assert self._process is not None
        self._process.send_signal(number)


@contextmanager
def _hearing_all() -> Iterator[None]:
    """Ray blocks SIGINT in what it starts, and whatever is started from there inherits that."""
    before = signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
