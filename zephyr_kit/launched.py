"""This process, as one that another has started."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable

from zephyr_kit.exits import Exit

RANK, SIZE, LOCAL_RANK, LOCAL_SIZE = "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"
"""Environment variables in which torch's launchers tell a process its place."""
START = "ZKIT_START"
"""Names this start of all ranks, among several: the store that they share may hold what an earlier one has left."""
PR_SET_PDEATHSIG = 1
"""Of Linux's prctl: the signal that a process gets when the one that started it is gone."""


def is_a_rank() -> bool:
    """Whether a launcher has started this process as one of several."""
    return {RANK, SIZE, LOCAL_RANK} <= os.environ.keys()


def tie_to(parent: int, number: int) -> Callable[[], None]:
    """What a process calls so that the system sends it this signal when the one that started it is gone; only Linux has that."""
    if sys.platform != "linux":
        return lambda: None
    control = ctypes.CDLL(None).prctl  # found before a fork, after which little may be done

    def tie() -> None:
        control(PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:  # gone already
            os._exit(Exit.TERMINATED)

    return tie
