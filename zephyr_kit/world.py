"""The processes that train together."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from zephyr_kit import ZkitError
from zephyr_kit.heartbeat import Heart
from zephyr_kit.launched import LOCAL_RANK, LOCAL_SIZE, START

Item = TypeVar("Item")

SHORTEST_PAUSE, LONGEST_PAUSE = 0.002, 0.5
"""Seconds between two looks for a word: a long wait costs nothing, a short one is not made longer."""
PATIENCE = timedelta(minutes=10)
"""How long a message may take: longer than any step, and the other ranks are given up."""


@dataclass(frozen=True)
class World:
    """This process among all that train together; ranks of a machine follow each other."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    """Ranks on this machine."""
    store: Any = field(default=None, compare=False)
    heart: Heart | None = field(default=None, compare=False)
    """Which tells who has started this process that it gets on, if that is asked for."""
    num_in_team: int = 1
    """Ranks that compute each batch together; they follow each other."""
    _groups: dict[int, dist.ProcessGroup] = field(default_factory=dict, compare=False, repr=False)
    _words: Iterator[int] = field(default_factory=itertools.count, compare=False, repr=False)

    @property
    def leads(self) -> bool:
        """Whether this is the rank that writes files and tells the user."""
        return self.rank == 0

    @property
    def num_teams(self) -> int:
        """How many batches are computed at once."""
        return self.size // self.num_in_team

    @property
    def own_team(self) -> int:
        """The number of this rank's."""
        return self.rank // self.num_in_team

    def in_teams(self, size: int) -> World:
        """The same ranks, so many of which compute each batch together; one that is alone does so alone."""
        if self.size % size and self.size > 1:
            raise ZkitError(f"`train.context_parallel` = {size} does not divide the {self.size} devices; change it, or --devices")
        return replace(self, num_in_team=size if self.size > 1 else 1)

    def team_group(self) -> dist.ProcessGroup:
        """Of this rank's team, made once; every rank asks for its own at once."""
        if self.num_in_team not in self._groups:
            own, _ = dist.new_subgroups(self.num_in_team, timeout=PATIENCE)  # type: ignore[no-untyped-call]
            self._groups[self.num_in_team] = own
        return self._groups[self.num_in_team]

    def mine(self, items: Sequence[Item]) -> Sequence[Item]:
        """The share of the batches of a step that falls to this rank's team."""
        return items[self.own_team :: self.num_teams]

    def total(self, value: Tensor) -> Tensor:
        """The sum of a value over all ranks, in its place."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def total_of_teams(self, value: Tensor) -> Tensor:
        """The sum of a value over all teams, whose members have the same, in its place."""
        return self.total(value) if self.num_in_team == 1 else self.total(value).div_(self.num_in_team)

    def highest(self, value: int) -> int:
        """The highest value of any rank; the host waits for the others, and no device does."""
        if self.size == 1:
            return value
        found = torch.tensor(value)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def mesh(self, device: str, *, hybrid: bool) -> DeviceMesh:
        """Of all ranks; in two dimensions, machines and their devices, if `hybrid`."""
        if hybrid:
            return init_device_mesh(device, (self.size // self.local_size, self.local_size), mesh_dim_names=("replicate", "shard"))
        return init_device_mesh(device, (self.size,), mesh_dim_names=("shard",))

    def gather(self, value: Any) -> list[Any]:
        """A JSON value of every rank, by rank."""
        if self.store is None:
            return [value]
        number = next(self._words)
        self.store.set(f"{number}/{self.rank}", json.dumps(value))
        return [self._read(f"{number}/{rank}") for rank in range(self.size)]

    def word(self, value: Any = None) -> Any:
        """A JSON value that the leader gives, and the others wait for, however long it takes."""
        if self.store is None:
            return value
        number = next(self._words)
        if self.leads:
            self.store.set(str(number), json.dumps(value))
        return self._read(str(number))

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """What the leader does before the others do the same; they find made what it has made."""
        if not self.leads:
            self.word()
        yield
        if self.leads:
            self.word()

    def refuse_broken(self, has_come: Callable[[], bool]) -> None:
        """Raise if a rank has ended, and what this one waits for has not come before that."""
        if self.heart and self.heart.signs.broken.exists() and not has_come():
            raise RuntimeError("a rank has ended before it said what this one waited for")

    def took(self, stage: str, step: int) -> None:
        """Tell who has started this rank that so many steps were taken."""
        if self.heart is not None:
            self.heart.took(stage, step)

    def _read(self, key: str) -> Any:
        assert self.store is not None
        # Not `store.wait`, in which no signal is heard, and whose timeouts ask a name server for the name of 127.0.0.1.
        pause = SHORTEST_PAUSE
        while not self.store.check([key]):
            self.refuse_broken(lambda: self.store.check([key]))
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        return json.loads(self.store.get(key))


@contextmanager
def joined(device_type: str, heart: Heart | None) -> Iterator[World]:
    """The world that this process's launcher has made, until the work is done."""
    local = (int(os.environ[LOCAL_RANK]), int(os.environ.get(LOCAL_SIZE, "1")))
    shared, rank, size = next(rendezvous("env://", timeout=PATIENCE))
    store = PrefixStore(os.environ.get(START, "only"), shared)
    backend = "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo"
    dist.init_process_group(backend, store=PrefixStore("torch", store), rank=rank, world_size=size, timeout=PATIENCE)
    yield World(rank, size, *local, PrefixStore("zkit", store), heart)
    dist.destroy_process_group()  # not after an error: the others would hear of that before its cause is told
