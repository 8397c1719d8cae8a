"""Where the agents of a run's machines meet; an agent that is alone listens to its own machine only."""

from __future__ import annotations

import socket
import uuid

from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
)

LOOPBACK = "127.0.0.1"


def meeting(run: str, *, nodes: int, fewest: int, endpoint: str | None) -> RendezvousHandler:
    """For so many machines, at `HOST:PORT`; for one, here."""
    if endpoint is None:
        return Alone()
    from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

    return get_rendezvous_handler(RendezvousParameters("c10d", endpoint, run, fewest, nodes, local_addr=None))


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
