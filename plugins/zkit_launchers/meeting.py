"""Where the agents of a run's machines meet; an agent that is alone listens to its own machine only."""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from threading import Thread

from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
)
from torch.distributed.elastic.rendezvous.utils import _matches_machine_hostname, parse_rendezvous_endpoint

from zephyr_kit import ZkitError

LOOPBACK = "127.0.0.1"
DEFAULT_PORT = 29_400
"""torch's own."""
SECONDS_TO_ANSWER = 60.0
"""For the first machine, which may be started after the others."""
SECONDS_FOR_A_TRY, SECONDS_BETWEEN_TRIES = 5.0, 1.0


def meeting(run: str, *, nodes: int, fewest: int, endpoint: str | None, say: Callable[[str], None]) -> RendezvousHandler:
    """For so many machines, at `HOST:PORT`; for one, here. Raises `ZkitError` when nobody is met there."""
    if endpoint is None:
        return Alone()
    from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

    try:
        # Not left to torch, which hears no signal while it waits, and tells what nobody can read.
        _wait_for(*parse_rendezvous_endpoint(endpoint, DEFAULT_PORT), say)
        return get_rendezvous_handler(RendezvousParameters("c10d", endpoint, run, fewest, nodes, local_addr=None))
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error.__cause__ or error).partition("\n")[0]
        raise ZkitError(f"--rendezvous {endpoint}: no machine of this run could be met there: {reason}") from error


def _wait_for(host: str, port: int, say: Callable[[str], None]) -> None:
    """Until the first machine answers, unless it is this one; raises an error when none does, or something else."""
    until, told = time.monotonic() + SECONDS_TO_ANSWER, False
    while True:
        try:
            socket.create_connection((host, port), SECONDS_FOR_A_TRY).close()
        except OSError as error:
            if _matches_machine_hostname(host):
                return
            if not told:
                say(f"waiting for {host}:{port}, for {SECONDS_TO_ANSWER:.0f} s at the most: {error.strerror or error}")
            if time.monotonic() >= until:
                raise
            told = True
            time.sleep(SECONDS_BETWEEN_TRIES)
        else:
            _refuse_others(host, port)
            return


def _refuse_others(host: str, port: int) -> None:
    """Raise `ConnectionError` when what answers is something else: torch would wait for it, whatever signal comes."""
    met: list[TCPStore] = []

    def meet() -> None:
        with suppress(RuntimeError):
            met.append(TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=SECONDS_FOR_A_TRY)))

    thread = Thread(target=meet, daemon=True)
    with silence():
        thread.start()
        thread.join(SECONDS_FOR_A_TRY)
    if not met:
        raise ConnectionError("what answers is something else")


@contextmanager
def silence() -> Iterator[None]:
    """What C++ would tell of a store that does not answer."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


class Alone(RendezvousHandler):
    """One machine: nobody to wait for. torch's own handlers listen on every address, to whoever comes."""

    def __init__(self) -> None:
        self._run = uuid.uuid4().hex
        self._store: TCPStore | None = None
        self._closed = False

    def get_backend(self) -> str:
        return "alone"

    @property
    def use_agent_store(self) -> bool:
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        """A new store for every start, so that nobody reads what an earlier one has left."""
        with socket.socket() as listener:
            listener.bind((LOOPBACK, 0))
            listener.listen(128)
            port = listener.getsockname()[1]
            self._store = TCPStore(LOOPBACK, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())
        return RendezvousInfo(self._store, 0, 1, RendezvousStoreInfo(LOOPBACK, port))

    def is_closed(self) -> bool:
        return self._closed

    def set_closed(self) -> None:
        self._closed = True

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return self._run

    def shutdown(self) -> bool:
        self._closed, self._store = True, None
        return True
