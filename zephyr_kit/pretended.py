"""Devices that are not there: a mesh whose processes send nothing, for rehearsals of what one of them would do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d
from torch.distributed.device_mesh import DeviceMesh

REPLICATE, SHARD, TEAM = "pretended replicate", "pretended shard", "pretended team"
"""Dimensions of no other mesh: torch keeps what it has worked out by mesh, and takes those of one shape and names for one."""


@contextmanager
def pretended_mesh(count: int, *, machines: int | None = None) -> Iterator[DeviceMesh]:
    """Of `count` devices, of which this is the first, on each of so many machines if that is given. No process group is left behind.

    Ranks that train together may be there: only the first of them may ask, and their own group stays as it is.
    """
    ranks = torch.arange(count * (machines or 1)).view(-1, count)
    with ExitStack() as stack:
        stack.enter_context(_pretended(ranks.numel()))
        shard = stack.enter_context(_group(SHARD, ranks[0].tolist()))
        if machines:
            replicate = stack.enter_context(_group(REPLICATE, ranks[:, 0].tolist()))
            yield DeviceMesh.from_group([replicate, shard], "cpu", mesh=ranks, mesh_dim_names=(REPLICATE, SHARD))
        else:
            yield DeviceMesh.from_group(shard, "cpu", mesh_dim_names=(SHARD,))


@contextmanager
def pretended_team(count: int) -> Iterator[dist.ProcessGroup]:
    """A group of `count` devices, of which this is the first."""
    with _pretended(count), _group(TEAM, range(count)) as group:
        yield group


@contextmanager
def _pretended(count: int) -> Iterator[None]:
    """The group of all, unless there is one."""
    from torch.distributed._tools import fake_collectives  # noqa: F401  gives collectives a form without data
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if dist.is_initialized():
        yield
        return
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=count)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def _group(name: str, ranks: Sequence[int]) -> Iterator[dist.ProcessGroup]:
    """Made without a word to the others, which `dist.new_group` would wait for."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    named: Any = name
    patience = distributed_c10d.default_pg_timeout
    group, _ = distributed_c10d._new_process_group_helper(len(ranks), 0, list(ranks), "fake", FakeStore(), named, timeout=patience)
    distributed_c10d._world.pg_group_ranks[group] = {rank: place for place, rank in enumerate(ranks)}
    try:
        yield group
    finally:
        dist.destroy_process_group(group)
