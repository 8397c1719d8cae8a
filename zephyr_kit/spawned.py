"""Processes of this machine that are the ranks of a small world, under gloo, for as long as one piece of work takes.

A server is begun for the first of them, imports once what all need, and forks them.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import FileStore, PrefixStore  # type: ignore[attr-defined]
from torch.multiprocessing.spawn import start_processes

from zephyr_kit.world import World

Work = Callable[..., Any]


def spawn(work: Work, size: int, folder: Path, *given: Any, local_size: int | None = None) -> list[Any]:
    """What `work(world, *given)` returns on each rank: tensors, numbers, texts, in lists and dictionaries."""
    folder.mkdir(parents=True, exist_ok=True)
    # Of no effect on a server that is there already; and only one that begins anew has this environment.
    multiprocessing.get_context("forkserver").set_forkserver_preload([work.__module__])
    how = (work, size, local_size or size, folder, dict(os.environ), given)
    start_processes(_rank, args=how, nprocs=size, start_method="forkserver")  # type: ignore[no-untyped-call]
    return [torch.load(folder / f"{number}.pt", weights_only=True) for number in range(size)]


@contextmanager
def world_of(rank: int, size: int, local_size: int, folder: Path) -> Iterator[World]:
    """The world of these processes, which meet in a file."""
    if sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    store = FileStore(str(folder / "store"), size)
    dist.init_process_group("gloo", store=PrefixStore("torch", store), rank=rank, world_size=size)
    yield World(rank, size, rank % local_size, local_size, PrefixStore("zkit", store))


def _rank(
    number: int, work: Work, size: int, local_size: int, folder: Path, environment: Mapping[str, str], given: tuple[Any, ...]
) -> None:
    os.environ.update(environment)
    try:
        with world_of(number, size, local_size, folder) as world:
            torch.save(work(world, *given), folder / f"{number}.pt")
            dist.barrier()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)  # gloo's threads may abort an interpreter that shuts down in order
