"""`zkit run` in a process of its own, which a server has forked that holds every library already."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from .job import Job

PRELOAD = ["faults.preload"]
SECONDS = 120.0

Prepare = Callable[[], None]
"""Done in the process before it begins."""


@dataclass(frozen=True)
class Going:
    """A run under way."""

    process: ForkServerProcess
    log: Path
    output: Path

    @property
    def is_alive(self) -> bool:
        return self.process.is_alive()

    def send(self, number: int) -> None:
        """To the whole process group, as a scheduler does."""
        try:
            os.killpg(self.process.pid or 0, number)
        except ProcessLookupError:  # not begun, or over
            if self.process.is_alive():
                os.kill(self.process.pid or 0, number)

    def kill(self) -> bool:
        """Whether it was alive."""
        self.send(signal.SIGKILL)
        return self.end() == -signal.SIGKILL

    def end(self) -> int:
        """The exit code."""
        self.process.join(SECONDS)
        assert self.process.exitcode is not None, f"it hangs: {self.said}"
        return self.process.exitcode

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""


def start(job: Job, output: Path, *options: str, prepare: Prepare | None = None, cache: Path | None = None) -> Going:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    # The server looks there only, and says nothing when it does not find what it is to hold.
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    output.parent.mkdir(parents=True, exist_ok=True)
    log = output.with_name(f"{output.name}.log")
    arguments = ["run", str(job.preset), "--output", str(output), *options]
    process = context.Process(target=child, args=(arguments, log, cache or Path(os.environ["ZKIT_CACHE"]), prepare))
    process.start()
    return Going(process, log, output)


def finish(job: Job, output: Path, *options: str, code: int = 0, prepare: Prepare | None = None, cache: Path | None = None) -> str:
    """Run to the end; what was said."""
    going = start(job, output, *options, prepare=prepare, cache=cache)
    assert going.end() == code, going.said
    return going.said


def child(arguments: list[str], log: Path, cache: Path, prepare: Prepare | None) -> None:
    """The whole command, but for the start of Python."""
    os.setsid()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    # multiprocessing's own handlers and streams are no part of `zkit`.
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup would have changed
    os.environ["ZKIT_CACHE"] = str(cache)
    from zephyr_kit.cli import main

    code = 70
    try:
        if prepare is not None:
            prepare()
        main(arguments)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def wait_for(condition: Callable[[], bool], going: Going, *, every: float = 0.002, seconds: float = SECONDS) -> bool:
    """Until it holds, or the run is over."""
    until = time.monotonic() + seconds
    while going.is_alive and time.monotonic() < until:
        if condition():
            return True
        time.sleep(every)
    return condition()
