"""A process for every device, under torch's elastic agent, which starts all anew when one fails."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from zephyr_kit.heartbeat import FOLDER, LAUNCHER
from zephyr_kit.protocols import Job
from zephyr_kit.runs import RunError, RunFolder
from zephyr_kit.stopping import Stop, Stopped
from zephyr_kit.workers import num_processors

STARTS = 10_000
"""torch's own limit of restarts, which counts those that got on as well; ours does not."""


@dataclass(frozen=True)
class Elastic:
    """torch's elastic agent: on this machine alone, or one on each of several machines."""

    def problems(self, job: Job) -> Sequence[str]:
        """See `protocols.Launcher`."""
        if job.device == "cuda":
            import torch

            found = torch.cuda.device_count()
            if job.devices > found:
                return [f"--devices {job.devices}: torch finds {found} CUDA devices on this machine"]
        return []

    def launch(self, job: Job, say: Callable[[str], None]) -> int:
        """See `protocols.Launcher`."""
        logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
        with ExitStack() as stack:
            logs = _own_logs(job, stack)
            signs = _fresh(logs / "signs")
            stack.enter_context(_passed_on(job, signs))
            return self._launch(job, logs, signs, say)

    def _launch(self, job: Job, logs: Path, signs: Path, say: Callable[[str], None]) -> int:
        from torch.distributed.elastic.agent.server.api import WorkerSpec
        from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std

        from zkit_launchers.guard import Guard, Watched
        from zkit_launchers.meeting import meeting

        spec = WorkerSpec(
            role="zkit",
            local_world_size=job.devices,
            entrypoint=sys.executable,
            args=("-m", "zephyr_kit", *job.arguments),
            rdzv_handler=meeting(job.name, nodes=job.nodes, fewest=job.fewest_nodes, endpoint=job.rendezvous, say=say),
            max_restarts=STARTS,
            monitor_interval=0.2,
        )
        # The first process speaks to the terminal; what the others say is kept.
        redirects = dict.fromkeys(range(1, job.devices), Std.ALL) | {0: Std.NONE}
        if job.rendezvous is not None:
            say(f"{job.nodes} machines meet at {job.rendezvous}")
        stop = Stop()
        guard = Guard(spec, DefaultLogsSpecs(str(logs), redirects), Watched(signs, logs, say), stop)
        try:
            with stop.listening(), stop.later("all ranks have stopped"):
                guard.watch()
        except Stopped as stopped:
            raise Stopped(stopped.exit, begun=guard.has_begun()) from None
        return 0


def _own_logs(job: Job, stack: ExitStack) -> Path:
    """A folder that no other launcher works in, held until the end: a second one in this run must do the first no harm.

    Of several machines, each has its own; those of one name, as containers may be, are told apart by a number.
    """

    def hold(name: str) -> Path:
        logs = job.folder / "logs" / name
        stack.enter_context(RunFolder(logs).locked())
        return logs

    if job.nodes == 1:
        return hold("")
    host = socket.gethostname()
    for name in (host, *(f"{host}-{number}" for number in range(2, job.nodes))):
        with suppress(RunError):
            return hold(name)
    return hold(f"{host}-{job.nodes}")


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


@contextmanager
def _passed_on(job: Job, signs: Path) -> Iterator[None]:
    """Set what the processes inherit, and nobody who is started later."""
    before = dict(os.environ)
    os.environ |= {FOLDER: str(signs), LAUNCHER: str(os.getpid())}
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = ""  # here, that is; we do
    # Each would take every processor for itself otherwise.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, num_processors() // job.devices)))
    if job.rendezvous is None and sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)

