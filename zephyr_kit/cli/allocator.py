"""The allocators of glibc and of torch, told to suit rows of any length.

glibc's, by default, returns large blocks to the system as they are freed, and the system clears each of
their pages when they are touched again. Told to keep them, it still cannot join freed neighbours,
since the slivers that aligned blocks leave between them wait in its caches of small blocks, and a
process grows by half of what it needs. Both can only be told before a process begins.

torch's, on a GPU, keeps what one length of row has freed in pieces that another cannot use; told to
let its segments grow, it maps such pieces anew.
"""

from __future__ import annotations

import os
import sys

NAME = "GLIBC_TUNABLES"
SETTINGS = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=34359738368:glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0"
BEFORE = "ZKIT_GLIBC_TUNABLES"
"""Holds what the user has set, while this process begins anew."""
OF_TORCH = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""The second is its older name."""
GROWING = "expandable_segments:True"


def let_segments_grow() -> None:
    """Of GPU memory, for this process and those that it starts, unless the user has told torch otherwise; before torch looks."""
    if not any(name in os.environ for name in OF_TORCH):
        os.environ[OF_TORCH[0]] = GROWING


def begin_anew() -> None:
    """Replace this process by the same one with these settings; in that one, put the environment back for those that it starts.

    Settings of the user's own come last, and so win. Elsewhere than on Linux nothing happens; another C library than glibc
    does not heed them.
    """
    if sys.platform != "linux":
        return
    own = os.environ.pop(BEFORE, None)
    if own is None:
        given = os.environ.get(NAME, "")
        settings = ":".join(filter(None, (SETTINGS, given)))
        os.execve(sys.executable, sys.orig_argv, {**os.environ, NAME: settings, BEFORE: given})  # noqa: S606  the very command that this is
    os.environ[NAME] = own
    if not own:
        del os.environ[NAME]
