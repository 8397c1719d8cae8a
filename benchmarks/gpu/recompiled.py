"""How often batches of other lengths are compiled for anew: it must come to an end."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.gpu.cells import Cell
from benchmarks.gpu.clock import Clock
from benchmarks.gpu.prepared import open_work
from benchmarks.ours import open_stage
from benchmarks.workloads import SEED

NUM_BATCHES = 40
"""Of which the second half must be compiled for no more."""
LARGEST = 8
"""Examples of a batch."""


def count(cell: Cell, num_batches: int = NUM_BATCHES) -> dict[str, Any]:
    """Compilations after each of the batches, forward and backward."""
    from zephyr_kit.batch import lay_out

    work, chance = open_work(cell), random.Random(SEED)  # noqa: S311  no secret
    with tempfile.TemporaryDirectory() as folder:
        policy = open_stage(cell, work, Path(folder), Clock(device=cell.device))[0].policy
        policy.module.train()
        rows = []
        for _ in range(num_batches):
            batch = lay_out([work.corpus[chance.randrange(len(work.corpus))] for _ in range(chance.randint(1, LARGEST))])
            policy.score(batch.to(policy.device)).sum().backward()
            policy.module.zero_grad()
            rows.append({"tokens": len(batch.tokens_T), "segments": len(batch.lengths), "compiled so far": _compiled()})
    rest = num_batches // 2
    late = rows[-1]["compiled so far"] - rows[rest - 1]["compiled so far"]
    return {"compiled in all": rows[-1]["compiled so far"], f"after batch {rest}": late, "allowed": late == 0, "batches": rows}


def _compiled() -> int:
    """Graphs that dynamo has made, those made anew included."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])
