"""What `zkit plan` foretells of our side's memory, for the batches that are trained on."""

from __future__ import annotations

import os
from typing import Any

from benchmarks.gpu.cells import Cell
from benchmarks.gpu.prepared import open_work
from benchmarks.workloads import SEED
from zephyr_kit.sizes import GIB


def foretell(cell: Cell) -> dict[str, Any]:
    """GiB of tensors at the highest moment, without what CUDA's libraries hold, which torch does not count either."""
    import torch

    from zephyr_kit.devices import Device
    from zephyr_kit.forecast import LIBRARIES, Forecast
    from zephyr_kit.plan import pack
    from zephyr_kit.protocols import Start
    from zephyr_kit.rehearsal import PlannedStep, rehearse

    os.nice(10)  # beside runs whose host must not wait
    torch.set_num_threads(1)
    stage, work = cell.stage(), open_work(cell)
    task: Any = stage.task
    lengths = work.corpus.row_lengths(share_prompts=task.train.share_prompts)
    packs = [pack(work.step(number), lengths, cell.tokens_per_batch) for number in range(work.num_steps)]
    largest = max((batch for step in packs for batch in step), key=lambda batch: int(lengths[batch].sum()))
    rehearsal = rehearse(
        PlannedStep(
            stage.model,
            Start(seed=SEED),
            task.objective,
            task.train.optimizer,
            tuple(work.corpus[index] for index in largest),
            share_prompts=task.train.share_prompts,
            accumulates=any(len(step) > 1 for step in packs),
            clip=task.train.clip,
        )
    )
    device = Device("GPU", "cuda", memory=0, libraries=0)
    forecast = Forecast(stage.name, device, cell.tokens_per_batch, chosen=False, workload=None, rehearsal=rehearsal, libraries=0)
    parts = {name: round(size / GIB, 3) for name, size in forecast.parts.items() if name != LIBRARIES}
    return {"checkpointing": cell.checkpointing, "foretold GiB": round(forecast.peak / GIB, 3), "by part": parts}
