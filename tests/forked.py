"""`zkit` in processes of their own, which a server has forked that holds every library already."""

from __future__ import annotations

import importlib
import math
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

import pytest

from zephyr_kit import spawned
from zephyr_kit.heartbeat import FOLDER
from zephyr_kit.stopping import SIGNALS

Prepare = Callable[[], None]
"""Done in the process before it begins."""


@dataclass(frozen=True)
class Streams:
    """Files in the place of a process's streams; without one, that of the process which it is forked from."""

    out: Path | None
    err: Path | None = None
    """Without it, the same as `out`."""
    given: Path = Path(os.devnull)

    def take(self) -> None:
        """multiprocessing's own are no part of `zkit`."""
        os.dup2(os.open(self.given, os.O_RDONLY), 0)
        if self.out is not None:
            os.dup2(os.open(self.out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
            os.dup2(os.open(self.err, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) if self.err else 1, 2)
        sys.stdin, sys.stdout, sys.stderr = (os.fdopen(number, mode, buffering=1) for number, mode in enumerate("rww"))


@dataclass(frozen=True)
class Forked:
    """A process, as `subprocess.Popen` shows one; what it says goes into its log."""

    process: BaseProcess
    log: Path | None = None

    @property
    def pid(self) -> int:
        return self.process.pid or 0

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log and self.log.exists() else ""

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        # Not `join`, which takes a closed pipe for the end of the process, and then waits for that without a limit.
        until = math.inf if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired(f"it hangs: {self.said}", timeout or 0)
            time.sleep(0.02)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        self.wait(timeout)
        return self.said, None

    def send_signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> None:
        """With all that it has started in its session."""
        for send in (os.killpg, os.kill):
            with suppress(ProcessLookupError):
                send(self.pid, signal.SIGKILL)


def start(
    arguments: Sequence[str],
    log: Path,
    *,
    prepare: Prepare | None = None,
    environment: Mapping[str, str] | None = None,
    ranks: bool = False,
) -> Forked:
    """Begin `zkit ARGUMENTS`, here, with this process's path; with `ranks`, it forks those too."""
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ if environment is None else environment)
    process = server().Process(target=_zkit, args=(list(arguments), Streams(log), environment, prepare, ranks))
    process.start()
    return Forked(process, log)


def zkit(*arguments: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """What `zkit ARGUMENTS` says to the end."""
    words = [str(argument) for argument in arguments]
    with TemporaryDirectory() as name:
        streams = Streams(*(Path(name, stream) for stream in ("out", "err", "in")))
        streams.given.write_text(stdin)
        process = server().Process(target=_zkit, args=(words, streams, dict(os.environ), None, False))
        process.start()
        code = Forked(process).wait(240)
        return subprocess.CompletedProcess(words, code, streams.out.read_text(), streams.err.read_text())


def spawn(*given: Any, **how: Any) -> list[Any]:
    """`zephyr_kit.spawned.spawn`, in forks of this server's."""
    server()
    return spawned.spawn(*given, **how)


def server() -> Any:
    """The context whose server holds the libraries; it serves this test process as long as that lives."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["preload"])
    with pytest.MonkeyPatch.context() as patch:
        # The server looks there only, and says nothing when it does not find what it is to hold.
        patch.setenv("PYTHONPATH", os.pathsep.join((str(Path(__file__).parent), *sys.path)))
        multiprocessing.forkserver.ensure_running()
    return context


def _zkit(arguments: list[str], streams: Streams, environment: Mapping[str, str], prepare: Prepare | None, ranks: bool) -> NoReturn:
    """The whole command, but for the start of Python."""
    os.setsid()
    streams.take()
    if ranks:
        from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler

        SubprocessHandler._popen = _fork_rank
    _main(arguments, environment, prepare)


def _fork_rank(handler: Any, words: tuple[str, ...], environment: Mapping[str, str]) -> Forked:
    """In the place of a new Python, `python -m zephyr_kit …`."""
    logs = [None if stream is None else Path(stream.name) for stream in (handler._stdout, handler._stderr)]
    process = multiprocessing.get_context("fork").Process(target=_rank, args=(list(words[3:]), Streams(*logs), environment))
    process.start()
    # `/proc` tells the environment of the server.
    Path(environment[FOLDER], f"{environment['RANK']}.pid").write_text(str(process.pid))
    return Forked(process)


def _rank(arguments: list[str], streams: Streams, environment: Mapping[str, str]) -> NoReturn:
    os.setsid()
    streams.take()
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # the launcher's own
    _main(arguments, environment, None)


def _main(arguments: list[str], environment: Mapping[str, str], prepare: Prepare | None) -> NoReturn:
    for number in SIGNALS:  # some of which nohup, or the launcher, would have changed
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    sys.unraisablehook = sys.__unraisablehook__
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["zkit", *arguments]
    importlib.invalidate_caches()  # a folder of the path may have come since the server has looked
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
